"""The hub's way in to local disk: its own provider and conversations, and a sink of files, to compare with receivers that write files.

What the hub does not do for files, this does as the others do: a file for each instance under its SOP Instance UID, no fsync.
"""

import os
from pathlib import Path

from hub_dicom import Trust, Trusts, file_meta
from hub_ingest.arrival import Answer, Arrival
from hub_ingest.receiver import METRICS
from hub_ingest.receiver_scp import StorageProvider
from hub_ingest.settings import ReceiverSettings
from hub_runtime import logger
from hub_runtime.service import Service, run_service

_BLOCK = 2**30
log = logger()


class Files:
    """Puts each instance into a file of its own, as Part 10."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, _trust: Trust, arrival: Arrival) -> Answer:
        """Answer an instance that is in its file."""
        if arrival.fault is not None or arrival.too_large or arrival.sha256 is None:
            return Answer(0xA700, "Not received")
        meta = file_meta(arrival.sop_class_uid, arrival.sop_instance_uid, arrival.transfer_syntax_uid)
        out = os.open(self._folder / f"{arrival.sop_instance_uid}.dcm", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            arrival.data_set.seek(0)
            os.write(out, meta)
            try:
                source = arrival.data_set.fileno()
            except OSError:  # it waits in memory
                os.write(out, arrival.data_set.read())
            else:
                while os.sendfile(out, source, None, _BLOCK):
                    pass
        finally:
            os.close(out)
        return Answer(0x0000)


def _serve(service: Service[ReceiverSettings]) -> None:
    settings = service.settings
    trusts = Trusts.load(settings.trusts_file)
    folder = settings.data_folder / "files"
    folder.mkdir(exist_ok=True)
    provider = StorageProvider(
        settings,
        trusts,
        admit=lambda trust: trust,
        take=Files(folder).take,
        metrics=service.metrics,
        folder=settings.data_folder / "receiver",
    )
    service.start_thread("accept", provider.serve)
    log.info("listening", host=settings.receiver_host, port=provider.port)
    try:
        service.wait()
    finally:
        provider.close(settings.drain_seconds)


if __name__ == "__main__":
    run_service("ingest.receiver", ReceiverSettings, _serve, metrics=METRICS)
