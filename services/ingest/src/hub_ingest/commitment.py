"""ingest.commitment: what was announced is noted where a commitment can look it up, and reports go to senders who have hung up.

instance.received  ->  announced/<trust>/<instance>/<digest>                      (announce, in commitment_ledger)
every second       ->  open requests -> decide -> claim a try -> N-EVENT-REPORT   (tell, here)
"""  # fmt: skip

import ssl
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Final

from hub_dicom import Trust, Trusts
from hub_dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from hub_dicom.sending import keep_answers
from hub_dicom.trusts import CommitmentAddress
from hub_events import Event
from hub_events.seal import is_sealed
from hub_events.types import InstanceReceived
from hub_objectstore import ObjectStore, StoreUnavailable
from hub_runtime import Metric, Service, logger, open_store, run_consumer, run_service
from hub_runtime.errors import StopProcess
from hub_runtime.settings import seal_key
from pydantic import BaseModel
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, build_role

from hub_ingest import commitment_ledger as ledger
from hub_ingest.commitment_dicom import PUSH_MODEL, PUSH_MODEL_INSTANCE, SUCCESS, report
from hub_ingest.commitment_settings import CommitmentSettings
from hub_ingest.receiver_tls import TlsFiles, UnusableCertificates
from hub_ingest.settings import load_trusts

SERVICE: Final = "ingest.commitment"
TOPIC: Final = "identifiable.instance.received"
METRICS: Final = (
    Metric("hub_commitment_announced_total", "counter", "Announcements noted.", ("trust",)),
    Metric("hub_commitment_ignored_total", "counter", "Announcements of something that is not an object of their own trust and instance."),
    Metric("hub_commitment_reported_total", "counter", "Transactions whose report was acknowledged.", ("trust", "result")),
    Metric("hub_commitment_attempts_failed_total", "counter", "Tries to report that were not acknowledged.", ("trust", "reason")),
    Metric("hub_commitment_given_up_total", "counter", "Transactions whose report nobody took in time.", ("trust",)),
    Metric("hub_commitment_open", "gauge", "Transactions that are not reported yet."),
)
_CONNECT_SECONDS: Final = 10
_ANSWER_SECONDS: Final = 30
_SCAN_SECONDS: Final = 1.0
_TIDY_SECONDS: Final = 3600.0

log = logger()


def deliver(trust: Trust, result: ledger.Result, *, calling: str, tls: TlsFiles | None) -> str:
    """Report on an association of our own; an empty text when the trust has acknowledged it, else why not, as a reason code.

    We are the SCP that calls: PS3.4 J.3.1 and PS3.7 D.3.3.4 want the role negotiated. Blocks for about a minute at most.
    """
    address = trust.commitment
    if address is None:
        return "no-address"
    try:
        context = tls.client_context() if address.tls and tls is not None else None
    except UnusableCertificates as error:
        log.error("a trust cannot be called over TLS", trust=trust.name, reason=str(error))  # noqa: TRY400 - where is no news
        return "certificates"
    return _report(address, result, calling, context)


def _report(address: CommitmentAddress, result: ledger.Result, calling: str, context: ssl.SSLContext | None) -> str:
    ae = AE(ae_title=calling)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = ae.acse_timeout = _CONNECT_SECONDS
    ae.dimse_timeout = ae.network_timeout = _ANSWER_SECONDS
    ae.add_requested_context(PUSH_MODEL, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    assoc = ae.associate(
        address.host,
        address.port,
        ae_title=address.ae_title,
        ext_neg=[build_role(PUSH_MODEL, scp_role=True)],
        tls_args=None if context is None else (context, address.host),
    )
    if not assoc.is_established:
        if assoc.is_rejected:
            return "rejected"
        return "context-refused" if assoc.rejected_contexts else "unreachable"
    keep_answers(assoc)
    try:
        event_type, information = report(result)
        try:
            status, _ = assoc.send_n_event_report(information, event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        except (RuntimeError, ValueError):
            return "aborted"
        if "Status" not in status:
            return "no-answer"
        return "" if status.Status == SUCCESS else f"status-{int(status.Status):04x}"
    finally:
        if assoc.is_established:
            assoc.release()


class Reporter:
    """Reports what is open and nobody else has, from `concurrency` threads."""

    def __init__(
        self, service: Service[CommitmentSettings], store: ObjectStore, trusts: Trusts, *, tell: Callable[[Trust, ledger.Result], str]
    ) -> None:
        """`tell` delivers a result; an empty text when it was acknowledged."""
        self._service = service
        self._store = store
        self._trusts = trusts
        self._tell = tell
        self._busy: dict[tuple[str, str], Future[None]] = {}
        self._looks: dict[tuple[str, str], float] = {}
        self._tidy_at = 0.0

    def run(self) -> None:
        """Until the service stops. Nothing that it meets stops the service."""
        with ThreadPoolExecutor(self._service.settings.commitment_concurrency) as pool:
            while not self._service.stop.wait(_SCAN_SECONDS):
                try:
                    self.scan(pool)
                    self.tidy()
                except StoreUnavailable:
                    log.warning("open commitments could not be listed", reason="store-unavailable")
                except Exception:
                    log.exception("open commitments could not be listed because of an unexpected error")

    def scan(self, pool: ThreadPoolExecutor) -> None:
        """Start on every transaction that is due. Raises StoreUnavailable."""
        self._busy = {place: future for place, future in self._busy.items() if not future.done()}
        seen = set()
        for transaction in ledger.transactions(self._store):
            place = (transaction.trust, transaction.id)
            seen.add(place)
            due = transaction.due(datetime.now(UTC), self._service.settings.commitment_retry_seconds)
            if due and place not in self._busy and time.monotonic() >= self._looks.get(place, 0.0):
                self._busy[place] = pool.submit(self._attend, transaction)
        self._looks = {place: when for place, when in self._looks.items() if place in seen}
        self._service.metrics.set("hub_commitment_open", len(seen))

    def tidy(self) -> None:
        """Forget, once an hour, what ended long ago. Raises StoreUnavailable."""
        if time.monotonic() < self._tidy_at:
            return
        self._tidy_at = time.monotonic() + _TIDY_SECONDS
        ledger.forget_done(self._store, datetime.now(UTC) - timedelta(seconds=self._service.settings.commitment_remember_seconds))

    def _attend(self, transaction: ledger.Transaction) -> None:
        try:
            self.attend(transaction)
        except StoreUnavailable:
            log.warning("a commitment was not reported now", trust=transaction.trust, reason="store-unavailable")
        except Exception:
            log.exception("a commitment was not reported because of an unexpected error", trust=transaction.trust)

    def attend(self, transaction: ledger.Transaction) -> None:
        """Decide, claim, tell, note: in this order, so that a kill anywhere repeats a report at worst and never loses one.

        Raises:
            StoreUnavailable: the store is away; the next scan goes on.
        """
        settings, metrics = self._service.settings, self._service.metrics
        if ledger.is_done(self._store, transaction):
            ledger.finish(self._store, transaction, "reported")  # somebody was killed while tidying up
            return
        request = ledger.load_request(self._store, transaction)
        trust = self._trusts.by_name(transaction.trust)
        if request is None:
            return
        age = (datetime.now(UTC) - request.requested).total_seconds()
        result = ledger.decide(
            self._store, transaction, request, wait_seconds=settings.commitment_wait_seconds, maximum=settings.commitment_references
        )
        if result is None:
            self._looks[transaction.trust, transaction.id] = time.monotonic() + min(10.0, max(0.5, age / 4))
            return
        number = ledger.claim(self._store, transaction)
        if number is None:
            return
        reason = self._tell(trust, result) if trust is not None else "unknown-trust"
        if not reason:
            ledger.finish(self._store, transaction, "reported")
            metrics.count("hub_commitment_reported_total", trust=transaction.trust, result="failures" if result.failed else "complete")
            return
        metrics.count("hub_commitment_attempts_failed_total", trust=transaction.trust, reason=reason)
        if age >= settings.commitment_give_up_seconds:
            ledger.finish(self._store, transaction, "given-up")
            metrics.count("hub_commitment_given_up_total", trust=transaction.trust)
            log.error("a commitment's report is given up", trust=transaction.trust, reason=reason, attempt=number)
            return
        log.warning("a commitment's report was not acknowledged", trust=transaction.trust, reason=reason, attempt=number)
        ledger.end_attempt(self._store, transaction, number)


def serve(service: Service[CommitmentSettings]) -> None:
    """Note announcements and report commitments until the service is told to stop."""
    settings = service.settings
    _config.LOG_HANDLER_LEVEL = "none"
    trusts = load_trusts(settings.trusts_file)
    if settings.tls is None and any(trust.commitment is not None and trust.commitment.tls for trust in trusts.trusts):
        raise StopProcess(
            "a trust takes reports over TLS, which needs HUB_RECEIVER_TLS_CERTIFICATE_FILE, _KEY_FILE and _CA_FILE", exit_code=78
        )
    key = seal_key(settings)
    if key is None and any(trust.router for trust in trusts.trusts):
        raise StopProcess(
            "a trust has a router, but there is no key for the seal: set HUB_SEAL_KEY for all services of ingest", exit_code=78
        )
    store = open_store(settings)

    def handle(event: Event[BaseModel]) -> list[Event[BaseModel]]:
        # Where routers publish, what they say counts when the gate has borne it out.
        if isinstance(event.data, InstanceReceived) and (key is None or is_sealed(event, key)):
            if ledger.announce(store, event.data):
                service.metrics.count("hub_commitment_announced_total", trust=event.data.trust)
            else:
                service.metrics.count("hub_commitment_ignored_total")
        return []

    reporter = Reporter(
        service, store, trusts, tell=lambda trust, result: deliver(trust, result, calling=settings.receiver_ae_title, tls=settings.tls)
    )
    service.start_thread("report", reporter.run)
    run_consumer(service, group=SERVICE, topics=[TOPIC], handle=handle, store=store, concurrency=8)


def main() -> None:
    """The command `hub-commitment`."""
    run_service(SERVICE, CommitmentSettings, serve, metrics=METRICS)


if __name__ == "__main__":
    main()
