"""The hub's way in to local disk: its own provider and conversations, and files as where data sets go.

For the comparison with receivers that write files this does as they do: a file for each instance under its SOP Instance UID, no fsync.
With HUB_BENCHMARK_DIGEST=yes it computes each object's SHA-256 on the way, which they do not.
"""

import errno
import hashlib
import os
from contextlib import suppress
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


class Sink:
    """One data set as a Part 10 file: what the provider keeps in memory or in a file without a name, this writes as it comes."""

    too_large = False
    away = None

    def __init__(self, folder: str, start: bytes) -> None:
        self.size = 0
        self.fault: OSError | None = None
        self._hash = hashlib.sha256(start) if _DIGEST else None
        self._path = f"{folder}/{_sop_instance_uid(start)}.dcm"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._kept = False
        self._start = start

    @property
    def stream(self) -> "Sink":
        return self

    @property
    def sha256(self) -> str | None:
        return self._hash.hexdigest() if self._hash is not None else None

    def write(self, data: memoryview) -> None:
        if self.fault is not None:
            return
        self.size += len(data)
        if self._hash is not None:
            self._hash.update(data)
        try:
            if self._start:  # together with the first fragment
                beyond = os.writev(self._file, (self._start, data)) - len(self._start)
                if beyond < 0:
                    self.fault = OSError(errno.ENOSPC, "not even the file meta information fits")
                    return
                data, self._start = data[beyond:], b""
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            self.fault = error

    def keep(self) -> None:
        """It is whole."""
        self._kept = True

    def discard(self) -> None:
        os.close(self._file)
        if not self._kept:
            with suppress(OSError):
                os.unlink(self._path)  # noqa: PTH108 - a string, as everything here that happens for each instance


def _sop_instance_uid(start: bytes) -> str:
    """Out of a file meta of our own."""
    place = start.index(b"\x02\x00\x03\x00UI") + 8
    return start[place : place + start[place - 2]].rstrip(b"\0").decode("ascii")


class Provider(StorageProvider[Trust]):
    """The provider with files instead of spools."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        files = more["folder"] / "files"
        files.mkdir(exist_ok=True)
        self._files = str(files)

    def spool(self, start: bytes | None) -> Any:
        if start is None:
            return super().spool(start)  # no UIDs: it will be refused
        return Sink(self._files, start)


def take(_trust: Trust, arrival: Arrival) -> Answer:
    """Answer an instance that is in its file."""
    sink: Any = arrival.data_set
    if arrival.fault is not None or not isinstance(sink, Sink):
        return Answer(0xA700, "Not received")
    sink.keep()
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
