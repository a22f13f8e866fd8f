"""The way in: C-STORE to a durable object and an acknowledged event, and only then 0x0000.

association  who calls?  (receiver_scp)
C-STORE      read the identity -> Part 10 under its digest's key -> event (intake) -> answer
"""  # fmt: skip

import sys
import time
from typing import Final, Protocol

from hub_runtime import logger
from hub_runtime.errors import StopProcess
from hub_runtime.metrics import Metric, Metrics
from hub_runtime.producer import EventProducer
from hub_runtime.service import Service, run_service
from hub_runtime.settings import open_store

from hub_ingest import commitment_scp
from hub_ingest.arrival import Answer, Arrival
from hub_ingest.intake import PROCESSING_FAILURE, SUCCESS, Call, Intake, Refusal, Taken
from hub_ingest.pressure import Pressure, watch_parts
from hub_ingest.receiver_scp import StorageProvider
from hub_ingest.receiver_tls import METRICS as TLS_METRICS
from hub_ingest.receiver_tls import TlsDoor, TlsFiles, UnusableCertificates
from hub_ingest.settings import ReceiverSettings, load_trusts

SOURCE: Final = "ingest.receiver"

METRICS: Final = (
    Metric(
        "hub_receiver_instances_total",
        "counter",
        "Instances acknowledged; result: stored, or repeated when the object was there.",
        ("trust", "result"),
    ),
    Metric("hub_receiver_bytes_total", "counter", "Bytes of data sets acknowledged.", ("trust",)),
    Metric("hub_receiver_refusals_total", "counter", "Instances answered with a failure.", ("trust", "status", "reason")),
    Metric("hub_receiver_associations_total", "counter", "Associations accepted.", ("trust",)),
    Metric("hub_receiver_associations_refused_total", "counter", "Associations rejected.", ("reason",)),
    Metric(
        "hub_receiver_associations_ended_total", "counter", "Accepted associations that ended; reason: released, or why not.", ("reason",)
    ),
    Metric("hub_receiver_associations_open", "gauge", "Associations open now."),
    Metric("hub_receiver_seconds", "histogram", "From a data set's last byte to its answer.", ("status",)),
    *TLS_METRICS,
    *commitment_scp.METRICS,
)

log = logger()


class TakesIn(Protocol):
    """Where instances go: to the hub, or to a spool on the way to it."""

    def take(self, call: Call, arrival: Arrival) -> Taken:
        """Returning promises that the instance is durable, and whatever else belongs to success. Raises `Refusal`."""
        ...


class Receiver:
    """Takes instances. Safe from many threads: each association has its own."""

    def __init__(self, intake: TakesIn, metrics: Metrics) -> None:
        """What comes goes to `intake`."""
        self._intake = intake
        self._metrics = metrics

    def take(self, call: Call, arrival: Arrival) -> Answer:
        """Answer one C-STORE. Success promises that the object is durable and its event acknowledged; any failure promises nothing.

        Blocks until store and broker have answered, at most about 20 s. Raises nothing: a fault of ours is 0x0110.
        """
        start = time.monotonic()
        trust = call.trust.name
        try:
            taken = self._intake.take(call, arrival)
        except Refusal as refusal:
            answer = Answer(refusal.status, refusal.comment)
            reason = refusal.reason
            log.warning("instance refused", trust=trust, status=f"{answer.status:#06x}", reason=reason, sop_class_uid=arrival.sop_class_uid)
        except Exception:
            log.exception("instance not taken because of an unexpected error", trust=trust, sop_class_uid=arrival.sop_class_uid)
            answer, reason = Answer(PROCESSING_FAILURE, "Unexpected error at the hub: keep it and send it again later"), "unexpected-error"
        else:
            self._metrics.count("hub_receiver_instances_total", trust=trust, result="stored" if taken.created else "repeated")
            self._metrics.count("hub_receiver_bytes_total", arrival.size, trust=trust)
            answer, reason = Answer(SUCCESS), ""
        status = f"{answer.status:#06x}"
        if answer.status != SUCCESS:
            self._metrics.count("hub_receiver_refusals_total", trust=trust, status=status, reason=reason)
        self._metrics.observe("hub_receiver_seconds", time.monotonic() - start, status=status)
        return answer


def main() -> None:
    """Run the receiver until SIGTERM: `hub-receiver [--workers N]`, or, inside a trust, `hub-receiver --spool DIR`."""
    if any(argument.split("=")[0] == "--spool" for argument in sys.argv[1:]):
        from hub_ingest import spool  # noqa: PLC0415 - it builds on this module

        spool.main()
        return
    run_service(SOURCE, ReceiverSettings, _serve, metrics=METRICS)


def _serve(service: Service[ReceiverSettings]) -> None:
    settings = service.settings
    trusts = load_trusts(settings.trusts_file)
    tls = tls_door(settings, service.metrics)
    store = open_store(settings)
    with EventProducer(settings) as producer:
        pressure, folder = Pressure(service.health), settings.data_folder / "receiver"
        receiver = Receiver(Intake(store, producer, source=SOURCE, origin="c-store", pressure=pressure), service.metrics)
        commitment = commitment_scp.CommitmentProvider(
            store, service.metrics, wait_seconds=settings.commitment_wait_seconds, maximum=settings.commitment_references
        )
        provider = StorageProvider(
            settings,
            trusts,
            admit=Call,
            take=receiver.take,
            metrics=service.metrics,
            folder=folder,
            tls=tls,
            away=pressure.away,
            commitment=commitment.association,
        )
        watch_parts(service, store, pressure, folder=folder, keep_free_bytes=settings.receiver_free_bytes)
        try:
            service.start_thread("accept", provider.serve)
            service.start_thread("commitment", lambda: commitment.run(service.stop))
            if provider.tls_port is not None:
                service.start_thread("accept-tls", provider.serve_tls)
                log.info("listening for TLS", host=settings.receiver_host, port=provider.tls_port)
            log.info("listening", host=settings.receiver_host, port=provider.port, called_ae=settings.receiver_ae_title)
            service.wait()
        finally:
            # Whoever is in the middle of a study finishes it, within bounds; nobody new comes in.
            unfinished = provider.close(settings.drain_seconds)
            log.info("no longer listening", count=unfinished)


def tls_door(settings: ReceiverSettings, metrics: Metrics) -> TlsDoor | None:
    """What the TLS port needs, where there shall be one.

    Raises:
        StopProcess: the certificates cannot be used.
    """
    if settings.receiver_tls_port is None:
        return None
    files = TlsFiles.of(settings.receiver_tls_certificate_file, settings.receiver_tls_key_file, settings.receiver_tls_ca_file)
    if files is None:
        return None
    try:
        return TlsDoor(files, metrics)
    except UnusableCertificates as error:
        raise StopProcess(f"TLS cannot be offered: {error}", exit_code=78) from error


if __name__ == "__main__":
    main()
