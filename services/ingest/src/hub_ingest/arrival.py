"""One instance as it came in, not decoded: where its bytes wait, and what its sender is answered."""

import contextlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast


@dataclass(frozen=True, slots=True)
class Arrival:
    """One instance of a request. The data set is what came over the network, byte for byte."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: BinaryIO
    size: int
    too_large: bool = False
    """There was more than the limit; the data set is not whole."""
    fault: OSError | None = None
    """It could not be kept; the data set is not whole."""
    sha256: str | None = None
    """Of the whole object, `file_meta` of these UIDs and then the data set, where it was computed on the way."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A C-STORE response: a status of PS3.4 table B.2-1, and a comment of at most 64 characters that names nobody."""

    status: int
    comment: str = ""


class Spool(io.BytesIO):
    """Where pynetdicom writes a data set: memory up to a bound, then a file without a name, which is gone with the process however it ends."""

    def __init__(self, folder: Path, memory_bytes: int, maximum_bytes: int) -> None:
        super().__init__()
        self.size = 0
        self.too_large = False
        self.fault: OSError | None = None
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._maximum_bytes = maximum_bytes
        self._file: BinaryIO | None = None

    @property
    def stream(self) -> BinaryIO:
        """What was written, at whatever place it stands."""
        return self._file if self._file is not None else self

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - a buffer
        """Append. Never raises: an exception here would end the association without an answer."""
        if self.size + len(data) > self._maximum_bytes:
            self.too_large = True
        if self.too_large or self.fault is not None:
            return len(data)
        try:
            if self._file is None and self.size + len(data) > self._memory_bytes:
                self._file = cast("BinaryIO", tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115 - `discard` closes it
                with self.getbuffer() as so_far:
                    self._file.write(so_far)
                super().truncate(0)
            written = super().write(data) if self._file is None else self._file.write(data)
        except OSError as error:
            self.fault = error
            return len(data)
        self.size += written
        return written

    def discard(self) -> None:
        """Give memory and file back now, not when the last reference goes."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self.close()
