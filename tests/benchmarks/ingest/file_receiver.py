"""The hub's way in to local disk: its own provider and conversations, and files as where data sets go.

For the comparison with receivers that write files this does as they do: a file for each instance under its SOP Instance UID, no fsync.
Unlike them it computes each object's SHA-256 on the way, and an instance that broke off leaves no file.
"""

import hashlib
import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from hub_dicom import Trust, Trusts
from hub_ingest.arrival import Answer, Arrival
from hub_ingest.receiver import METRICS
from hub_ingest.receiver_scp import StorageProvider
from hub_ingest.settings import ReceiverSettings
from hub_runtime import logger
from hub_runtime.service import Service, run_service

_DIGEST = os.environ.get("HUB_BENCHMARK_DIGEST") == "yes"
log = logger()
_number = itertools.count()


class Sink:
    """One data set as a Part 10 file, begun under a name of its own: what the provider keeps in memory, this writes as it comes."""

    too_large = False

    def __init__(self, folder: Path, start: bytes) -> None:
        self.size = 0
        self.fault: OSError | None = None
        self._folder = folder
        self._hash = hashlib.sha256(start) if _DIGEST else None
        self._path: Path | None = folder / f"{os.getpid()}-{next(_number)}.part"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(self._file, start)

    @property
    def stream(self) -> "Sink":
        return self

    @property
    def sha256(self) -> str | None:
        return self._hash.hexdigest() if self._hash is not None else None

    def write(self, data: memoryview) -> None:
        self.size += len(data)
        if self._hash is not None:
            self._hash.update(data)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            self.fault = error

    def keep(self, name: str) -> None:
        """It is whole: give it its name."""
        if self._path is not None:
            os.rename(self._path, self._folder / name)  # noqa: PTH104 - a path object of each instance is time
            self._path = None

    def discard(self) -> None:
        os.close(self._file)
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()


class Provider(StorageProvider[Trust]):
    """The provider with files instead of spools."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.files = more["folder"] / "files"
        self.files.mkdir(exist_ok=True)

    def spool(self, start: bytes | None) -> Any:
        if start is None:
            return super().spool(start)  # no UIDs: it will be refused
        return Sink(self.files, start)


def take(_trust: Trust, arrival: Arrival) -> Answer:
    """Answer an instance that is in its file."""
    sink: Any = arrival.data_set
    if arrival.fault is not None or not isinstance(sink, Sink):
        return Answer(0xA700, "Not received")
    sink.keep(f"{arrival.sop_instance_uid}.dcm")
    return Answer(0x0000)


def _serve(service: Service[ReceiverSettings]) -> None:
    settings = service.settings
    provider = Provider(
        settings,
        Trusts.load(settings.trusts_file),
        admit=lambda trust: trust,
        take=take,
        metrics=service.metrics,
        folder=settings.data_folder,
    )
    service.start_thread("accept", provider.serve)
    log.info("listening", host=settings.receiver_host, port=provider.port)
    try:
        service.wait()
    finally:
        provider.close(settings.drain_seconds)


if __name__ == "__main__":
    run_service("ingest.receiver", ReceiverSettings, _serve, metrics=METRICS)
