"""The receiver's side of storage commitment: N-ACTION made durable, and the report on the same association while it is open.

Who asks and hangs up is told by hub-commitment, on an association of its own.
"""

import contextlib
import io
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from hub_dicom import Trust
from hub_objectstore import ObjectStore, StoreUnavailable
from hub_runtime import logger
from hub_runtime.metrics import Metric, Metrics
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import encode

from hub_ingest import commitment_ledger as ledger
from hub_ingest.arrival import Spool
from hub_ingest.commitment_dicom import (
    INVALID_ARGUMENT,
    NO_SUCH_ACTION,
    NO_SUCH_INSTANCE,
    NOT_AUTHORISED,
    PROCESSING_FAILURE,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST_ACTION,
    RESOURCE_LIMITATION,
    SUCCESS,
    InvalidRequest,
    read_request,
    report,
)

METRICS: Final = (
    Metric("hub_commitment_requests_total", "counter", "N-ACTION requests by their answer.", ("trust", "status")),
    Metric("hub_commitment_reported_here_total", "counter", "Transactions reported on the association that asked.", ("trust",)),
)
_QUIET_SECONDS: Final = 0.5  # an association on which nothing goes on for so long is between two messages
_ANSWER_SECONDS: Final = 30.0
_RENEW_SECONDS: Final = ledger.HOLD_SECONDS / 3
_POLL_SECONDS: Final = 0.2
_THREADS: Final = 4

log = logger()


class _Messages(queue.Queue[Any]):
    """The messages of an association: answers to our reports come aside, everything else goes to pynetdicom."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: queue.Queue[int] = queue.Queue()
        self.requests = 0
        self.last = time.monotonic()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: ANN401 - as queue has it
        self.last = time.monotonic()
        message = item[1]
        if isinstance(message, N_EVENT_REPORT) and not message.is_valid_request:
            self.answers.put(int(message.Status if message.Status is not None else PROCESSING_FAILURE))
        else:
            self.requests += 1
            super().put(item, block, timeout)


class ReportingDimse(DIMSEServiceProvider):  # type: ignore[misc]  # pynetdicom has no types
    """DIMSE of an association on which another thread may send a report.

    pynetdicom's own `send_n_event_report` takes the next message for its answer, whatever it is: here a C-STORE may come first.
    """

    def __init__(self, assoc: Any) -> None:  # noqa: ANN401 - pynetdicom has no types
        super().__init__(assoc)
        self.msg_queue = _Messages()
        self._sending = threading.Lock()
        self._responses = 0

    def send_msg(self, primitive: Any, context_id: int) -> None:  # noqa: ANN401 - pynetdicom has no types
        """Send one message whole: the fragments of two must not mix (PS3.8 annex E)."""
        with self._sending:
            super().send_msg(primitive, context_id)
            self.msg_queue.last = time.monotonic()
            self._responses += primitive.MessageIDBeingRespondedTo is not None

    def seconds_quiet(self) -> float:
        """How long nothing has gone on; 0 while a request comes in or waits for its answer."""
        if self.message is not None or self._responses < self.msg_queue.requests:
            return 0.0
        return time.monotonic() - self.msg_queue.last


@dataclass(slots=True)
class _Asked:
    assoc: Any
    context_id: int
    transaction: ledger.Transaction
    request: ledger.Request
    asked: float = field(default_factory=time.monotonic)
    renewed: float = field(default_factory=time.monotonic)
    look: float = 0.0
    busy: bool = False
    claimed: bool = False
    over: bool = False


class CommitmentProvider:
    """Takes requests from many threads; `run` reports."""

    def __init__(self, store: ObjectStore, metrics: Metrics, *, wait_seconds: float, maximum: int) -> None:
        """`wait_seconds`: what has not come so long after the request is missing; `maximum`: references of one request that are looked up."""
        self._store = store
        self._metrics = metrics
        self._wait_seconds = wait_seconds
        self._maximum = maximum
        self._asked: list[_Asked] = []
        self._lock = threading.Lock()

    def answer(self, trust: Trust | None, event: Any) -> tuple[int, None]:  # noqa: ANN401 - pynetdicom has no types
        """Answer an N-ACTION; success promises that its report will be tried until it is acknowledged. Does not raise."""
        if trust is None:
            return NOT_AUTHORISED, None
        try:
            status = self._take(trust, event)
        except StoreUnavailable:
            log.warning("a storage commitment request was not kept", trust=trust.name, reason="store-unavailable")
            status = PROCESSING_FAILURE
        except InvalidRequest as error:
            log.warning("a storage commitment request was not understood", trust=trust.name, reason=str(error))
            status = INVALID_ARGUMENT
        except Exception:
            log.exception("a storage commitment request failed because of an unexpected error", trust=trust.name)
            status = PROCESSING_FAILURE
        self._metrics.count("hub_commitment_requests_total", trust=trust.name, status=f"{status:#06x}")
        return status, None

    def _take(self, trust: Trust, event: Any) -> int:  # noqa: ANN401 - pynetdicom has no types
        asked: N_ACTION = event.request
        if asked.RequestedSOPInstanceUID != PUSH_MODEL_INSTANCE:
            return NO_SUCH_INSTANCE
        if asked.ActionTypeID != REQUEST_ACTION:
            return NO_SUCH_ACTION
        information: io.BytesIO | None = asked.ActionInformation
        if information is None:
            return INVALID_ARGUMENT
        if isinstance(information, Spool) and (
            information.too_large or information.fault is not None or information.stream is not information
        ):
            return RESOURCE_LIMITATION
        transaction_uid, references = read_request(information.getvalue(), event.context.transfer_syntax)
        transaction = ledger.open_transaction(self._store, trust, transaction_uid, references)
        request = ledger.load_request(self._store, transaction)
        if request is not None and any(
            context.context_id == event.context.context_id and context.as_scp for context in event.assoc.accepted_contexts
        ):
            with self._lock:
                # The same again from the same place is one; from another association, whoever claims it first tells.
                self._asked = [one for one in self._asked if one.transaction.prefix != transaction.prefix]
                self._asked.append(_Asked(event.assoc, int(event.context.context_id), transaction, request))
        return SUCCESS

    def run(self, stop: threading.Event) -> None:
        """Report on the associations that stay open, until `stop`; then give all that is left away."""
        with ThreadPoolExecutor(_THREADS) as pool:
            while not stop.wait(_POLL_SECONDS):
                with self._lock:
                    asked = list(self._asked)
                for one in asked:
                    if one.over or not one.assoc.is_established:
                        self._forget(one)
                    else:
                        self._renew(one)
                        if not one.busy and time.monotonic() >= one.look and one.assoc.dimse.seconds_quiet() >= _QUIET_SECONDS:
                            one.busy = True
                            pool.submit(self._attend, one)
        for one in self._asked:
            self._release(one)

    def _forget(self, one: _Asked) -> None:
        with self._lock:
            self._asked = [other for other in self._asked if other is not one]
        if not one.over and not one.busy:
            self._release(one)

    def _renew(self, one: _Asked) -> None:
        if time.monotonic() - one.renewed > _RENEW_SECONDS and not one.claimed:
            one.renewed = time.monotonic()
            with contextlib.suppress(StoreUnavailable):
                ledger.hold(self._store, one.transaction)

    def _attend(self, one: _Asked) -> None:
        try:
            result = ledger.decide(self._store, one.transaction, one.request, wait_seconds=self._wait_seconds, maximum=self._maximum)
            if result is None:
                one.look = time.monotonic() + min(5.0, max(_POLL_SECONDS, (time.monotonic() - one.asked) / 4))
            elif not one.assoc.is_established or one.assoc.dimse.seconds_quiet() == 0:
                pass  # something goes on again, or it has ended: the next round sees which
            elif ledger.claim(self._store, one.transaction) is None:
                one.over = True
            else:
                one.claimed = True
                # The report waits for its answer in a thread of its own: one slow sender keeps nobody waiting.
                threading.Thread(target=self._report, args=(one, result), daemon=True).start()
                one.over = True
        except StoreUnavailable:
            one.look = time.monotonic() + _POLL_SECONDS * 5
        except Exception:
            log.exception("a commitment was not reported because of an unexpected error", trust=one.transaction.trust)
            self._release(one)
            one.over = True
        finally:
            one.busy = False
            if not one.over and not one.assoc.is_established:
                self._release(one)

    def _report(self, one: _Asked, result: ledger.Result) -> None:
        status = _send(one.assoc, one.context_id, result)
        try:
            if status == SUCCESS:
                ledger.finish(self._store, one.transaction, "reported")
                self._metrics.count("hub_commitment_reported_here_total", trust=one.transaction.trust)
            else:
                ledger.end_attempt(self._store, one.transaction, 1)
                ledger.release(self._store, one.transaction)
        except StoreUnavailable:
            log.warning(
                "the end of a commitment was not noted; it is reported again", trust=one.transaction.trust, reason="store-unavailable"
            )

    def _release(self, one: _Asked) -> None:
        with contextlib.suppress(StoreUnavailable):  # then it is found out by its hold, which nobody renews
            ledger.release(self._store, one.transaction)


def _send(assoc: Any, context_id: int, result: ledger.Result) -> int | None:  # noqa: ANN401 - pynetdicom has no types
    """The sender's answer to an N-EVENT-REPORT on its own association, None where none came."""
    syntax = next(context.transfer_syntax[0] for context in assoc.accepted_contexts if context.context_id == context_id)
    event_type, information = report(result)
    request = N_EVENT_REPORT()
    request.MessageID = 1
    request.AffectedSOPClassUID = PUSH_MODEL
    request.AffectedSOPInstanceUID = PUSH_MODEL_INSTANCE
    request.EventTypeID = event_type
    request.EventInformation = io.BytesIO(encode(information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated) or b"")
    try:
        assoc.dimse.send_msg(request, context_id)
        return int(assoc.dimse.msg_queue.answers.get(timeout=_ANSWER_SECONDS))
    except queue.Empty:
        return None
