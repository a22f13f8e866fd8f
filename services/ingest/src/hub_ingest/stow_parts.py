"""The parts of one STOW-RS request, from the body's chunks to instances that wait to be taken in. Bounded, and without the network."""

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from hub_dicom import FileMeta, NotPart10, file_meta, read_file_meta
from hub_dicom.storage import TRANSFER_SYNTAXES

from hub_ingest.arrival import Arrival, Spool
from hub_ingest.intake import CANNOT_UNDERSTAND, OUT_OF_RESOURCES
from hub_ingest.multipart import Malformed, MultipartReader, PartBegins, PartData, PartEnds, media_type
from hub_ingest.stow_response import SOP_CLASS_NOT_SUPPORTED, TRANSFER_SYNTAX_NOT_SUPPORTED, Result

DICOM: Final = "application/dicom"
_MAXIMUM_META_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Waiting:
    """A whole part that may be taken in. Discard the spool afterwards."""

    arrival: Arrival
    spool: Spool


@dataclass(slots=True)
class _Part:
    """What has come of a part so far."""

    result: Result | None = None
    """Its fate, when it is known before its end; what follows is read and dropped."""
    head: bytearray = field(default_factory=bytearray)
    meta: FileMeta | None = None
    spool: Spool | None = None
    digest: "hashlib._Hash | None" = None


class Parts:
    """Feed it the body; it gives a `Waiting` or a `Result` for each part, in order."""

    def __init__(self, reader: MultipartReader, spool: Callable[[], Spool], takes: Callable[[str], bool]) -> None:
        """`spool` makes where one part's data set waits; `takes` says whether a SOP class is taken in."""
        self._reader = reader
        self._takes = takes
        self._spool = spool
        self._part: _Part | None = None
        self.away = False
        """Set it when store or broker are away: parts are only named from then on, and none is kept."""

    def feed(self, chunk: bytes) -> Iterator[Waiting | Result]:
        """The parts that end in this chunk.

        Raises:
            Malformed: the body cannot be read from here on.
        """
        for piece in self._reader.feed(chunk):
            match piece:
                case PartBegins():
                    self._part = _Part(_refused_by_fields(piece))
                case PartData() if self._part is not None:
                    self._take(self._part, piece.data)
                case PartEnds() if self._part is not None:
                    part, self._part = self._part, None
                    yield _end(part)

    def close(self) -> None:
        """The body is over.

        Raises:
            Malformed: it was cut off.
        """
        self._reader.close()

    def discard(self) -> None:
        """Drop the part that is not whole."""
        if self._part is not None and self._part.spool is not None:
            self._part.spool.discard()
        self._part = None

    def _take(self, part: _Part, data: bytes) -> None:
        if part.result is not None:
            return
        if part.meta is None:
            part.head += data
            try:
                part.meta = _file_meta(part.head)
            except NotPart10:
                part.result = Result(None, None, CANNOT_UNDERSTAND, "not-part10")
            if part.meta is None:
                return
            part.result = self._refused_by_meta(part.meta)
            data, part.head = bytes(part.head[part.meta.data_set_offset :]), bytearray()
            if part.result is not None:
                return
            part.spool = self._spool()
            # Of the object that will be stored: our own file meta, then the data set.
            part.digest = hashlib.sha256(file_meta(part.meta.sop_class_uid, part.meta.sop_instance_uid, part.meta.transfer_syntax_uid))
        if part.spool is not None and part.digest is not None:
            part.spool.write(data)
            part.digest.update(data)

    def _refused_by_meta(self, meta: FileMeta) -> Result | None:
        uids = meta.sop_class_uid, meta.sop_instance_uid
        if self.away:
            return Result(*uids, OUT_OF_RESOURCES, "not-tried", passing=True)
        if not self._takes(meta.sop_class_uid):
            return Result(*uids, SOP_CLASS_NOT_SUPPORTED, "sop-class-not-supported")
        if meta.transfer_syntax_uid not in TRANSFER_SYNTAXES:
            return Result(*uids, TRANSFER_SYNTAX_NOT_SUPPORTED, "transfer-syntax-not-supported")
        return None


def _end(part: _Part) -> Waiting | Result:
    if part.result is not None:
        return part.result
    if part.meta is None or part.spool is None or part.digest is None:
        return Result(None, None, CANNOT_UNDERSTAND, "not-part10")
    spool = part.spool
    arrival = Arrival(
        sop_class_uid=part.meta.sop_class_uid,
        sop_instance_uid=part.meta.sop_instance_uid,
        transfer_syntax_uid=part.meta.transfer_syntax_uid,
        data_set=spool.stream,
        size=spool.size,
        too_large=spool.too_large,
        fault=spool.fault,
        sha256=part.digest.hexdigest(),
    )
    return Waiting(arrival, spool)


def _refused_by_fields(part: PartBegins) -> Result | None:
    """The header fields say whether the part can be an instance; without a Content-Type it is what the request says (RFC 2387)."""
    try:
        kind, _ = media_type(part.fields.get("content-type", DICOM))
    except Malformed:
        kind = ""
    if kind != DICOM:
        return Result(None, None, CANNOT_UNDERSTAND, "media-type")
    if part.fields.get("content-transfer-encoding", "binary").lower() not in {"binary", "8bit"}:
        return Result(None, None, CANNOT_UNDERSTAND, "transfer-encoding")
    return None


def _file_meta(head: bytearray) -> FileMeta | None:
    """The part's file meta information as soon as all of it is there.

    Raises:
        NotPart10: there is none, or it is larger than any that says something.
    """
    if len(head) < 144:
        if len(head) >= 132 and head[128:132] != b"DICM":
            raise NotPart10("no DICM at byte 128")
        return None
    if head[128:140] == b"DICM" + struct.pack("<HH2sH", 0x0002, 0x0000, b"UL", 4):
        end = 144 + int(struct.unpack_from("<L", head, 140)[0])
        if end > _MAXIMUM_META_BYTES:
            raise NotPart10("the file meta information is too large")
        if end > len(head):
            return None
    return read_file_meta(bytes(head[:_MAXIMUM_META_BYTES]))
