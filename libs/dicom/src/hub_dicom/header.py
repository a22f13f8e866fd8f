"""The few elements of a data set that say what an instance is, read without decoding the rest.

The walk is over element headers (PS3.5 7.1), in any transfer syntax, values skipped. It has no recursion, and its work is
bounded by `MAXIMUM_ELEMENTS` and `MAXIMUM_INFLATED_BYTES` whatever the sender made up.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from hub_dicom.uid import is_uid

MAXIMUM_ELEMENTS: Final = 2_000_000
"""So many element and item headers are looked at. Beyond, what was read of the identity stands; without one the data set is unreadable."""
MAXIMUM_INFLATED_BYTES: Final = 64 * 2**20
"""So much of a deflated data set is inflated, with the same consequence."""

IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1.99"
_DEFLATED: Final = frozenset({DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})

_SOP_CLASS_UID: Final = 0x00080016
_SOP_INSTANCE_UID: Final = 0x00080018
_MODALITY: Final = 0x00080060
_PATIENT_ID: Final = 0x00100020
_STUDY_INSTANCE_UID: Final = 0x0020000D
_SERIES_INSTANCE_UID: Final = 0x0020000E
_WANTED: Final = frozenset({_SOP_CLASS_UID, _SOP_INSTANCE_UID, _MODALITY, _PATIENT_ID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID})
_IDENTITY: Final = frozenset({_SOP_CLASS_UID, _SOP_INSTANCE_UID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID})

_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_DELIMITERS: Final = frozenset({_ITEM, _ITEM_END, _SEQUENCE_END})
_UNDEFINED: Final = 0xFFFFFFFF
_LONG: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT: Final = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI"}
    | {b"UL", b"US"}
)
_MAXIMUM_LEVELS: Final = 1000
_VALUE_BYTES: Final = 1024  # of a wanted value; a UID has 64 at most


class UnreadableDataSet(ValueError):
    """The data set cannot be parsed as its transfer syntax says; the same bytes will never be readable.

    The text says what is wrong at which byte and holds no value of the data set.
    """

    def __init__(self, reason: str, text: str) -> None:
        """`reason` is a code for metrics and logs: `empty`, `not-the-transfer-syntax`, `truncated`, `malformed`, `too-large-to-read`."""
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Header:
    """What an instance says of itself. None: the element is missing, empty, or not what it must be."""

    sop_class_uid: str | None
    sop_instance_uid: str | None
    study_instance_uid: str | None
    series_instance_uid: str | None
    modality: str | None
    has_patient_id: bool


class _OutOfWork(Exception):
    """The bounds are reached."""


class _Source(Protocol):
    def read(self, length: int) -> bytes: ...

    def skip(self, length: int) -> None: ...

    def tell(self) -> int: ...


def read_header(data_set: bytes | BinaryIO, transfer_syntax_uid: str) -> Header:
    """Read the identity of an instance, and see that its data set is whole: no value reaches beyond its end.

    Args:
        data_set: the encoded data set, or a seekable stream that stands at its first byte and ends at its last.
        transfer_syntax_uid: how it is encoded.

    Raises:
        UnreadableDataSet: it is not encoded so, or ends within an element.
    """
    implicit = transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
    little = transfer_syntax_uid != EXPLICIT_VR_BIG_ENDIAN
    stream = io.BytesIO(data_set) if isinstance(data_set, bytes) else data_set
    source: _Source = _Inflated(stream) if transfer_syntax_uid in _DEFLATED else _Plain(stream)
    walk = _Walk(source)
    try:
        walk.top_level(implicit=implicit, little=little)
    except _OutOfWork:
        if not walk.found.keys() >= _IDENTITY:
            raise UnreadableDataSet(
                "too-large-to-read", "what identifies the instance does not come within the bounds of the reader"
            ) from None
    return walk.header()


class _Walk:
    """One pass over the headers of a data set's elements."""

    def __init__(self, source: _Source) -> None:
        self.found: dict[int, bytes] = {}
        self._source = source
        self._left = MAXIMUM_ELEMENTS

    def header(self) -> Header:
        modality = self._text(_MODALITY)
        return Header(
            sop_class_uid=self._uid(_SOP_CLASS_UID),
            sop_instance_uid=self._uid(_SOP_INSTANCE_UID),
            study_instance_uid=self._uid(_STUDY_INSTANCE_UID),
            series_instance_uid=self._uid(_SERIES_INSTANCE_UID),
            modality=modality if modality and len(modality) <= 16 else None,
            has_patient_id=bool(self._text(_PATIENT_ID)),
        )

    def top_level(self, *, implicit: bool, little: bool) -> None:
        source = self._source
        first = True
        while True:
            place = source.tell()
            start = source.read(8)
            if len(start) < 8:
                if first and not start:
                    raise UnreadableDataSet("empty", "there is no data set")
                if start.strip(b"\0"):  # some writers pad the end with zeros
                    raise _truncated(place)
                return
            tag, vr, length = self._element(start, implicit=implicit, little=little)
            if first:
                _check_first(tag, vr, implicit=implicit)
                first = False
            if tag in _DELIMITERS:
                raise UnreadableDataSet("malformed", f"an item or delimiter outside a sequence at byte {place}")
            if length == _UNDEFINED:
                # PS3.5 6.2.2: a UN of undefined length is a sequence in Implicit VR Little Endian.
                self._skip_sequence(implicit=implicit or vr == b"UN", little=little or vr == b"UN")
            elif tag in _WANTED and length <= _VALUE_BYTES:
                value = source.read(length)
                if len(value) < length:
                    raise _truncated(place)
                self.found[tag] = value
            else:
                source.skip(length)

    def _skip_sequence(self, *, implicit: bool, little: bool) -> None:
        """Skip the items of a sequence or the fragments of pixel data to the delimiter, any number of levels down."""
        levels = [(False, implicit, little)]
        while levels:
            place = self._source.tell()
            start = self._source.read(8)
            if len(start) < 8:
                raise _truncated(place)
            in_item, implicit, little = levels[-1]
            tag, vr, length = self._element(start, implicit=implicit, little=little)
            if (tag not in _DELIMITERS) if in_item else (tag == _ITEM):
                if length != _UNDEFINED:
                    self._source.skip(length)
                elif len(levels) < _MAXIMUM_LEVELS:
                    levels.append((not in_item, implicit or vr == b"UN", little or vr == b"UN"))
                else:
                    raise UnreadableDataSet("malformed", f"sequences are nested too deeply at byte {place}")
            elif tag == _SEQUENCE_END:
                # Within an item: its own delimiter is missing, which some writers do.
                del levels[-2 if in_item else -1 :]
            elif tag == _ITEM_END and in_item:
                levels.pop()
            else:
                raise UnreadableDataSet("malformed", f"a sequence holds something other than items at byte {place}")

    def _element(self, start: bytes, *, implicit: bool, little: bool) -> tuple[int, bytes, int]:
        """Tag, VR and length of the element whose first 8 bytes are `start`."""
        if self._left == 0:
            raise _OutOfWork
        self._left -= 1
        group, number = struct.unpack_from("<HH" if little else ">HH", start)
        tag = group << 16 | number
        vr = start[4:6]
        if implicit or group == 0xFFFE or not (vr in _SHORT or vr in _LONG or (vr.isalpha() and vr.isupper())):
            # No VR where there must be one: written by software that copies implicit elements into explicit data sets.
            return tag, b"", struct.unpack_from("<L" if little else ">L", start, 4)[0]
        if vr in _SHORT:
            return tag, vr, struct.unpack_from("<H" if little else ">H", start, 6)[0]
        # PS3.5 7.1.2: a VR that is not known yet has a length of 32 bits.
        rest = self._source.read(4)
        if len(rest) < 4:
            raise _truncated(self._source.tell())
        return tag, vr, struct.unpack("<L" if little else ">L", rest)[0]

    def _text(self, tag: int) -> str:
        return self.found.get(tag, b"").decode("latin-1").strip("\0 ")

    def _uid(self, tag: int) -> str | None:
        uid = self._text(tag)
        return uid if is_uid(uid) else None


class _Plain:
    """A seekable stream of known length."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._start = stream.tell()
        self._end = stream.seek(0, io.SEEK_END)
        stream.seek(self._start)
        self._place = self._start
        self.read_stream = stream.read

    def read(self, length: int) -> bytes:
        block = self.read_stream(length)
        self._place += len(block)
        return block

    def skip(self, length: int) -> None:
        if self._place + length > self._end:
            raise _truncated(self.tell())
        self._place += length
        self._stream.seek(self._place)

    def tell(self) -> int:
        return self._place - self._start


class _Inflated:
    """A deflated stream (PS3.5 A.5: RFC 1951, no zlib header), inflated as far as asked."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._buffer = b""
        self._start = 0
        self._place = 0
        self._made = 0

    def read(self, length: int) -> bytes:
        blocks = []
        while length > 0 and self._fill():
            block = self._buffer[self._start : self._start + length]
            self._start += len(block)
            self._place += len(block)
            length -= len(block)
            blocks.append(block)
        return b"".join(blocks)

    def skip(self, length: int) -> None:
        while length > 0:
            if not self._fill():
                raise _truncated(self._place)
            step = min(length, len(self._buffer) - self._start)
            self._start += step
            self._place += step
            length -= step

    def tell(self) -> int:
        return self._place

    def _fill(self) -> bool:
        """Whether there is a byte more."""
        while self._start == len(self._buffer):
            if self._inflater.eof:
                return False
            if self._made >= MAXIMUM_INFLATED_BYTES:
                raise _OutOfWork
            deflated = self._inflater.unconsumed_tail or self._stream.read(65_536)
            try:
                # Nothing left to put in: flush what the inflater still has, or see that the stream was cut off.
                self._buffer = self._inflater.decompress(deflated, 65_536)
            except zlib.error:
                raise UnreadableDataSet("malformed", f"the deflated data set is broken after {self._place} inflated bytes") from None
            self._start = 0
            self._made += len(self._buffer)
            if not deflated and not self._buffer:
                raise _truncated(self._place)
        return True


def _truncated(place: int) -> UnreadableDataSet:
    return UnreadableDataSet("truncated", f"the data set ends within the element at byte {place}")


def _check_first(tag: int, vr: bytes, *, implicit: bool) -> None:
    """The first element tells rubbish and another transfer syntax apart from a data set."""
    if tag >> 16 < 0x0004 or tag in _DELIMITERS:
        raise UnreadableDataSet("not-the-transfer-syntax", f"a data set cannot start with group {tag >> 16:04X}")
    if not implicit and vr not in _SHORT and vr not in _LONG:
        raise UnreadableDataSet("not-the-transfer-syntax", "the first element has no VR that is known: not Explicit VR as announced")
