"""What happens next, by name.

A handler raises one of these to choose the fate of its record; everything else it raises is a dead letter with the reason
`unexpected-error`. A refusal of the domain is none of them: it is an event.

    RetryLater          the same record again, later; the consumer stands still until then
        BrokerUnavailable   the bus is away
    GiveUp              a dead letter
    StopProcess         the process ends and commits nothing more
"""

import re

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def check_reason(reason: str) -> str:
    """`reason`, when it is a code of the contracts: lower-case words joined by hyphens.

    Raises:
        ValueError: it is not; a sentence does not belong into a reason, because reasons are counted, logged and published.
    """
    if not _CODE.fullmatch(reason):
        raise ValueError("a reason is a code such as `store-unavailable`: lower-case words joined by hyphens")
    return reason


class RetryLater(Exception):
    """A passing fault: the same record is handled again until it goes through. `reason` is a code; /readyz and the log show it."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(text or reason)
        self.reason = check_reason(reason)


class BrokerUnavailable(RetryLater):
    """The bus has not acknowledged in time. The event may have been written all the same: send it again."""

    def __init__(self, text: str) -> None:
        super().__init__("broker-unavailable", text)


class GiveUp(Exception):
    """This record can never be handled: it becomes a dead letter with `reason`, and the next one is handled.

    `text` is for the developer who raises it in a test; it is neither logged nor published, because it may hold data.
    """

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(text or reason)
        self.reason = check_reason(reason)


class StopProcess(Exception):
    """The process must end now, with `exit_code`; what is not committed is done again by its successor."""

    def __init__(self, text: str, exit_code: int = 70) -> None:
        super().__init__(text)
        self.exit_code = exit_code
