"""The receiver inside a trust, while the line to the hub may be down: C-STORE to a synced file, and only then 0x0000; then on to the hub.

C-STORE      read the identity -> the hub's own Part 10 object -> file and folder synced (spool_folder) -> answer
forwarding   in the order of arrival; the file goes after the hub's 0x0000 (spool_forwarder)
"""

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Final

from hub_dicom import file_meta
from hub_runtime import logger
from hub_runtime.errors import StopProcess
from hub_runtime.metrics import Metric
from hub_runtime.service import EXIT_SETTINGS, Service, run_service

from hub_ingest.arrival import Arrival
from hub_ingest.intake import OUT_OF_RESOURCES, Call, Refusal, Taken, identify
from hub_ingest.receiver import METRICS, Receiver, tls_door
from hub_ingest.receiver_scp import StorageProvider
from hub_ingest.receiver_tls import UnusableCertificates
from hub_ingest.settings import load_trusts
from hub_ingest.spool_folder import SpoolFolder, SpoolFull, SpoolInUse
from hub_ingest.spool_forwarder import Forwarder
from hub_ingest.spool_settings import SpoolSettings

NAME: Final = "ingest.spool"
SPOOL_METRICS: Final = (
    *METRICS,
    Metric("hub_spool_instances", "gauge", "Instances that wait for the hub."),
    Metric("hub_spool_bytes", "gauge", "Bytes on disk: what waits, and what the hub refused."),
    Metric("hub_spool_oldest_seconds", "gauge", "How long the first of what waits has waited; 0 when nothing does."),
    Metric("hub_spool_refused_instances", "gauge", "Instances moved aside because the hub does not take them."),
    Metric("hub_spool_forwarded_total", "counter", "Instances that the hub has taken."),
    Metric("hub_spool_refused_total", "counter", "Instances that were moved aside.", ("reason",)),
    Metric("hub_spool_retries_total", "counter", "Failures that are tried again.", ("reason",)),
)
_BLOCK_BYTES: Final = 2**20
_LOOK_SECONDS: Final = 0.5

log = logger()


class SpoolIntake:
    """Takes instances into a spool, as the hub's intake takes them into the store. Safe from many threads."""

    def __init__(self, spool: SpoolFolder) -> None:
        """What is taken goes to `spool`."""
        self._spool = spool

    def take(self, _call: Call, arrival: Arrival) -> Taken:
        """Read and keep. Returning promises that the object is on the disk, synced.

        Raises:
            Refusal: the instance is answered with a failure.
        """
        _, study, series, instance = identify(arrival)
        meta = file_meta(arrival.sop_class_uid, instance, arrival.transfer_syntax_uid)
        try:
            created = self._spool.add(study, _blocks(meta, arrival), len(meta) + arrival.size)
        except SpoolFull:
            raise Refusal(OUT_OF_RESOURCES, "spool-full", "Spool is full: send again later") from None
        except OSError as error:
            log.warning("the spool's disk did not take an instance", error=type(error).__name__, code=error.errno)
            raise Refusal(OUT_OF_RESOURCES, "no-space", "No space to keep the instance: send again later") from None
        return Taken(study, series, instance, arrival.sop_class_uid, created=created)


def _blocks(meta: bytes, arrival: Arrival) -> Iterator[bytes]:
    yield meta
    arrival.data_set.seek(0)
    while block := arrival.data_set.read(_BLOCK_BYTES):
        yield block


def main() -> None:
    """Spool until SIGTERM: `hub-receiver --spool DIR`."""
    parser = argparse.ArgumentParser(prog="hub-receiver", add_help=False)
    parser.add_argument("--spool", required=True)
    mine, rest = parser.parse_known_args()
    os.environ["HUB_SPOOL_FOLDER"] = mine.spool
    sys.argv[1:] = rest
    run_service(NAME, SpoolSettings, _serve, metrics=SPOOL_METRICS)


def _serve(service: Service[SpoolSettings]) -> None:
    settings = service.settings
    trusts = load_trusts(settings.trusts_file)
    try:
        spool = SpoolFolder(settings.spool_folder, maximum_bytes=settings.spool_maximum_bytes)
    except (SpoolInUse, OSError) as error:
        raise StopProcess(f"the spool's folder cannot be used: {error}", exit_code=EXIT_SETTINGS) from error
    try:
        if settings.tls is not None:
            settings.tls.client_context()
    except UnusableCertificates as error:
        raise StopProcess(f"the hub cannot be called over TLS: {error}", exit_code=EXIT_SETTINGS) from error
    if len(trusts.trusts) != 1:
        raise StopProcess("HUB_TRUSTS_FILE must name one trust: a spool forwards under one AE title", exit_code=EXIT_SETTINGS)
    receiver = Receiver(SpoolIntake(spool), service.metrics)
    provider = StorageProvider(
        settings,
        trusts,
        admit=Call,
        take=receiver.take,
        metrics=service.metrics,
        folder=spool.incoming,
        tls=tls_door(settings, service.metrics),
    )
    service.start_thread("figures", lambda: _watch(service, spool))
    forwarding = service.start_thread("forward", Forwarder(spool, settings, service.metrics, service.stop).run)
    try:
        service.start_thread("accept", provider.serve)
        log.info("listening", host=settings.receiver_host, port=provider.port, called_ae=settings.receiver_ae_title)
        if provider.tls_port is not None:
            service.start_thread("accept-tls", provider.serve_tls)
            log.info("listening for TLS", host=settings.receiver_host, port=provider.tls_port)
        service.wait()
    finally:
        unfinished = provider.close(settings.drain_seconds)
        forwarding.join(settings.drain_seconds)
        log.info("no longer listening", count=unfinished)


def _watch(service: Service[SpoolSettings], spool: SpoolFolder) -> None:
    """Show how much waits and since when. The hub's absence is no reason to be unready: to take instances in then is what this is for."""
    while True:
        instances, size, age, refused = spool.figures
        service.metrics.set("hub_spool_instances", instances)
        service.metrics.set("hub_spool_bytes", size)
        service.metrics.set("hub_spool_oldest_seconds", age)
        service.metrics.set("hub_spool_refused_instances", refused)
        if spool.full:
            service.health.unready("spool", "the spool or its disk is full: instances are answered with 0xA700")
        else:
            service.health.ready("spool")
        if service.stop.wait(_LOOK_SECONDS):
            return
