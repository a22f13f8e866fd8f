"""The receiver's side of storage commitment: N-ACTION made durable, and the report on the same association while it is open.

Who asks and hangs up is told by hub-commitment, on an association of its own.
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from hub_dicom import Trust
from hub_objectstore import ObjectStore, StoreUnavailable
from hub_runtime import logger
from hub_runtime.metrics import Metric, Metrics
from pydicom.uid import UID
from pynetdicom.dsutils import encode

from hub_ingest import commitment_ledger as ledger
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
from hub_ingest.conversation import Context, Message, Outgoing
from hub_ingest.dimse import (
    ACTION_TYPE_ID,
    N_ACTION_RQ,
    N_EVENT_REPORT_RSP,
    REQUESTED_SOP_INSTANCE_UID,
    STATUS,
    MalformedCommand,
    event_report,
    response,
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


class _Asked:
    """One request on its association: waited for, decided (`result`), reported (`claimed`), over."""

    def __init__(self, context: Context, transaction: ledger.Transaction, request: ledger.Request) -> None:
        self.context, self.transaction, self.request = context, transaction, request
        self.asked = self.renewed = time.monotonic()
        self.look = 0.0
        self.busy = False
        self.result: ledger.Result | None = None
        self.message_id = 0
        self.answer_by = 0.0


class CommitmentProvider:
    """Knows the requests of all associations that are open; `run` finds out what is to be told, each association tells it."""

    def __init__(self, store: ObjectStore, metrics: Metrics, *, wait_seconds: float, maximum: int) -> None:
        """`wait_seconds`: what has not come so long after the request is missing; `maximum`: references of one request that are looked up."""
        self.store = store
        self.metrics = metrics
        self._wait_seconds = wait_seconds
        self._maximum = maximum
        self._asked: list[_Asked] = []
        self._lock = threading.Lock()

    def association(self, trust: Trust) -> "AssociationCommitment":
        """What answers on one association of this trust."""
        return AssociationCommitment(self, trust)

    def run(self, stop: threading.Event) -> None:
        """Decide what the open associations wait for, until `stop`; then give all that is left away."""
        with ThreadPoolExecutor(_THREADS) as pool:
            while not stop.wait(_POLL_SECONDS):
                for one in self._all():
                    self._renew(one)
                    if one.result is None and not one.busy and time.monotonic() >= one.look:
                        one.busy = True
                        pool.submit(self._decide, one)
        for one in self._all():
            self.forget(one)

    def _all(self) -> list[_Asked]:
        with self._lock:
            return list(self._asked)

    def remember(self, one: _Asked) -> None:
        """Decide on it. The same again from the same place is one; from another association, whoever claims it first tells."""
        with self._lock:
            self._asked.append(one)

    def forget(self, one: _Asked) -> None:
        """Anybody may report it now. Saying it of what is reported changes nothing."""
        with self._lock:
            if one not in self._asked:
                return
            self._asked.remove(one)
        with contextlib.suppress(StoreUnavailable):  # then it is found out by its hold, which nobody renews
            ledger.release(self.store, one.transaction)

    def done(self, one: _Asked) -> None:
        """It is reported, here or elsewhere."""
        with self._lock:
            if one in self._asked:
                self._asked.remove(one)

    def _renew(self, one: _Asked) -> None:
        if time.monotonic() - one.renewed > _RENEW_SECONDS and not one.message_id:
            one.renewed = time.monotonic()
            with contextlib.suppress(StoreUnavailable):
                ledger.hold(self.store, one.transaction)

    def _decide(self, one: _Asked) -> None:
        try:
            one.result = ledger.decide(self.store, one.transaction, one.request, wait_seconds=self._wait_seconds, maximum=self._maximum)
            if one.result is None:
                one.look = time.monotonic() + min(5.0, max(_POLL_SECONDS, (time.monotonic() - one.asked) / 4))
        except StoreUnavailable:
            one.look = time.monotonic() + _POLL_SECONDS * 5
        except Exception:
            log.exception("a commitment was not decided because of an unexpected error", trust=one.transaction.trust)
            self.forget(one)
        finally:
            one.busy = False


class AssociationCommitment:
    """Storage commitment on one association: `Other` of its conversation."""

    def __init__(self, provider: CommitmentProvider, trust: Trust) -> None:
        self._provider = provider
        self._trust = trust
        self._asked: list[_Asked] = []
        self._message_id = 0

    @property
    def watching(self) -> bool:
        """Whether there is anything to report."""
        return bool(self._asked)

    def answer(self, message: Message) -> Iterable[Outgoing] | None:
        """Answer an N-ACTION; success promises that its report will be tried until it is acknowledged."""
        command = message.command
        if message.context.abstract_syntax != PUSH_MODEL:
            return None
        if command.field == N_EVENT_REPORT_RSP:
            self._acknowledged(message)
            return []
        if command.field != N_ACTION_RQ:
            return None
        status = self._status(message)
        self._provider.metrics.count("hub_commitment_requests_total", trust=self._trust.name, status=f"{status:#06x}")
        return [Outgoing(response(command, status))]

    def _status(self, message: Message) -> int:
        try:
            return self._take(message)
        except StoreUnavailable:
            log.warning("a storage commitment request was not kept", trust=self._trust.name, reason="store-unavailable")
            return PROCESSING_FAILURE
        except (InvalidRequest, MalformedCommand) as error:
            log.warning("a storage commitment request was not understood", trust=self._trust.name, reason=str(error))
            return INVALID_ARGUMENT
        except Exception:
            log.exception("a storage commitment request failed because of an unexpected error", trust=self._trust.name)
            return PROCESSING_FAILURE

    def _take(self, message: Message) -> int:
        context, command, store = message.context, message.command, self._provider.store
        if not context.as_scp:
            return NOT_AUTHORISED
        if command.text(REQUESTED_SOP_INSTANCE_UID) != PUSH_MODEL_INSTANCE:
            return NO_SUCH_INSTANCE
        if command.number(ACTION_TYPE_ID) != REQUEST_ACTION:
            return NO_SUCH_ACTION
        if message.too_large:
            return RESOURCE_LIMITATION
        if message.data_set is None:
            return INVALID_ARGUMENT
        transaction_uid, references = read_request(message.data_set, UID(context.transfer_syntax))
        transaction = ledger.open_transaction(store, self._trust, transaction_uid, references)
        request = ledger.load_request(store, transaction)
        if request is not None and all(one.transaction.prefix != transaction.prefix for one in self._asked):
            asked = _Asked(context, transaction, request)
            self._asked.append(asked)
            self._provider.remember(asked)
        return SUCCESS

    def idle(self, seconds: float) -> Iterable[tuple[Context, Outgoing]]:
        """Report what is decided, one at a time."""
        if waiting := next((one for one in self._asked if one.message_id), None):
            if time.monotonic() >= waiting.answer_by:
                self._not_acknowledged(waiting)
            return []
        if seconds < _QUIET_SECONDS:
            return []
        decided = next((one for one in self._asked if one.result is not None), None)
        try:
            if decided is None or decided.result is None or not self._claim(decided):
                return []
            event_type, information = report(decided.result)
            syntax = UID(decided.context.transfer_syntax)
            encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated) or b""
        except StoreUnavailable:
            return []
        except Exception:
            log.exception("a commitment was not reported because of an unexpected error", trust=self._trust.name)
            return []
        self._message_id = self._message_id % 65_535 + 1
        decided.message_id, decided.answer_by = self._message_id, time.monotonic() + _ANSWER_SECONDS
        return [(decided.context, Outgoing(event_report(self._message_id, PUSH_MODEL, PUSH_MODEL_INSTANCE, event_type), encoded))]

    def end(self) -> None:
        """What is not told is somebody else's now."""
        for one in list(self._asked):
            if one.message_id:
                self._not_acknowledged(one)
            else:
                self._provider.forget(one)
        self._asked.clear()

    def _claim(self, one: _Asked) -> bool:
        if ledger.claim(self._provider.store, one.transaction) is not None:
            return True
        self._asked.remove(one)
        self._provider.done(one)
        return False

    def _acknowledged(self, message: Message) -> None:
        waiting = next((one for one in self._asked if one.message_id), None)
        if waiting is None:
            return  # for a report that is not waited for any more
        try:
            accepted = message.command.number(STATUS) == SUCCESS
        except MalformedCommand:
            accepted = False
        if not accepted:
            self._not_acknowledged(waiting)
            return
        self._asked.remove(waiting)
        self._provider.done(waiting)
        self._provider.metrics.count("hub_commitment_reported_here_total", trust=self._trust.name)
        with self._noted():
            ledger.finish(self._provider.store, waiting.transaction, "reported")

    def _not_acknowledged(self, one: _Asked) -> None:
        self._asked.remove(one)
        with self._noted():
            ledger.end_attempt(self._provider.store, one.transaction, 1)
        self._provider.forget(one)

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable:
            log.warning("the end of a commitment was not noted; it is reported again", trust=self._trust.name, reason="store-unavailable")
