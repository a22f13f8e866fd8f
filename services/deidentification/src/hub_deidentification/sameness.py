"""Whether two files under one SOP Instance UID are one instance: what is compared is what they say, not how it is encoded.

Only decoded pixels and elements count. Of the encoding nothing does: transfer syntax and lossless compression, VR written or not, byte
order, character set of the same text, group lengths, padding, lengths of sequences and items. Nor do the identifiers that archives and
routers coerce on the way (`COERCED`, PS3.3 C.12.1). Lossy compression is no encoding but another image: PS3.3 C.7.6.1.1.5 has it said in
Lossy Image Compression for ever after, and C.7.6.1.1.2 asks for another SOP Instance UID, so under the same one it is a conflict.

It decodes what somebody sent, so it belongs into a process that may die.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from hub_dicom import FileMeta
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from hub_deidentification.dictionary import UNKNOWN, vr_of
from hub_deidentification.encoding import (
    EXPLICIT_LITTLE,
    NATIVE,
    DataSet,
    Element,
    Instance,
    Unparseable,
    file_meta_of,
    items_of,
    read_instance,
)
from hub_deidentification.text import CHARACTER_SET_VRS, decode, terms_of


class Verdict(StrEnum):
    """What a further content under a SOP Instance UID is. The last is the only one that somebody must look at."""

    SAME = "same"
    """The same data set; only the file around it differs."""
    RECODED = "recoded"
    """The same elements and pixels in another encoding."""
    COERCED = "coerced"
    """Elements of `COERCED` differ, perhaps the encoding too, and nothing else."""
    CONFLICT = "conflict"
    """Pixels or other elements differ, or nobody can tell: it cannot be parsed or its pixels cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A verdict, and where it comes from."""

    verdict: Verdict
    differs: tuple[str, ...] = ()
    """Paths of the elements that decided it, `(0040,0275)[0].(0040,1001)`, at most `MOST_PATHS`; never a value."""
    because: str = ""
    """Of a conflict: `elements`, `pixels`, `lossy`, `unreadable` or `undecodable`."""


COERCED: Final = {
    0x00080015: "InstanceCoercionDateTime",
    0x00080050: "AccessionNumber",
    0x00080051: "IssuerOfAccessionNumberSequence",
    0x00100020: "PatientID",
    0x00100021: "IssuerOfPatientID",
    0x00100022: "TypeOfPatientID",
    0x00100024: "IssuerOfPatientIDQualifiersSequence",
    0x00101000: "OtherPatientIDs",
    0x00101002: "OtherPatientIDsSequence",
    0x0018A001: "ContributingEquipmentSequence",
    0x00200010: "StudyID",
    0x00380010: "AdmissionID",
    0x00380011: "IssuerOfAdmissionID",
    0x00380014: "IssuerOfAdmissionIDSequence",
    0x00380060: "ServiceEpisodeID",
    0x00380064: "IssuerOfServiceEpisodeIDSequence",
    0x00400009: "ScheduledProcedureStepID",
    0x00400026: "OrderPlacerIdentifierSequence",
    0x00400027: "OrderFillerIdentifierSequence",
    0x00400253: "PerformedProcedureStepID",
    0x00401001: "RequestedProcedureID",
    0x00402016: "PlacerOrderNumberImagingServiceRequest",
    0x00402017: "FillerOrderNumberImagingServiceRequest",
    0x04000561: "OriginalAttributesSequence",
}
"""Identifiers that a trust's systems give, and the record of their having been changed. They are coerced at the top level and in items of
`RequestAttributesSequence`; anywhere else they are elements like others."""

MOST_PATHS: Final = 20
MOST_FRAME_BYTES: Final = 256 * 2**20
"""A larger compressed frame is not decoded."""

_REQUEST_ATTRIBUTES: Final = 0x00400275
_PIXEL_DATA: Final = 0x7FE00010
_PHOTOMETRIC_INTERPRETATION: Final = 0x00280004
_BY_COMPRESSORS: Final = frozenset({0x00082111, 0x00089215})
"""Derivation Description and Code Sequence: lossless compressors write into them, so they count only under one transfer syntax."""
_LOSSY: Final = frozenset({0x00282110, 0x00282112, 0x00282114})
_OF_THE_ENCODING: Final = frozenset(
    # length to end, character set, planar configuration, offset tables, total length of the value, padding of the data set
    {0x00080001, 0x00080005, 0x00280006, 0x7FE00001, 0x7FE00002, 0x7FE00003, 0xFFFCFFFC, _PIXEL_DATA, _PHOTOMETRIC_INTERPRETATION}
)
_OF_ANY_ENCODING: Final = frozenset({0x00080005, 0xFFFCFFFC})
_WIDTHS: Final = dict.fromkeys(("AT", "OW", "SS", "US"), 2) | dict.fromkeys(("FL", "OF", "OL", "SL", "UL"), 4)
_WIDTHS.update(dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8))
_ONE_VALUE: Final = frozenset({"LT", "ST", "UR", "UT"})
_LEADING_SPACES: Final = frozenset({"LT", "ST", "UC", "UR", "UT"})
_TEXT: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})
_BLOCK: Final = 2**20
_END: Final = b"\xfe\xff\xdd\xe0\0\0\0\0"
_DECODER_ERRORS: Final = (ValueError, RuntimeError, AttributeError, NotImplementedError, KeyError, TypeError, IndexError, struct.error)
_Pixels = npt.NDArray[Any]
_NO_MORE: Final[tuple[_Pixels | None, str]] = (None, "")


class _Undecodable(Exception):
    """No decoder here, or the pixels are not what the elements say."""


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two files."""

    meta: FileMeta
    instance: Instance
    data_set: bytes | memoryview

    @property
    def little(self) -> bool:
        return self.instance.syntax.little


def compare(one: bytes | memoryview, other: bytes | memoryview) -> Comparison:
    """Compare two Part 10 files. Beside the files (which may be mapped) it holds their headers and one decoded frame of each."""
    try:
        a, b = _read(one), _read(other)
        if a.meta.transfer_syntax_uid == b.meta.transfer_syntax_uid and _equal(a.data_set, b.data_set):
            return Comparison(Verdict.SAME)
        walk = _Walk(a, b)
        walk.data_sets(_Level(a.instance.root, b.instance.root))
    except (Unparseable, RecursionError, struct.error):
        return Comparison(Verdict.CONFLICT, because="unreadable")
    if walk.conflicts:
        return Comparison(Verdict.CONFLICT, tuple(walk.conflicts[:MOST_PATHS]), "lossy" if walk.lossy else "elements")
    try:
        differs = _pixels_differ(a, b)
    except _Undecodable:
        return Comparison(Verdict.CONFLICT, (_name(_PIXEL_DATA),), "undecodable")
    if differs:
        return Comparison(Verdict.CONFLICT, (_name(differs),), "pixels")
    return Comparison(Verdict.COERCED if walk.coerced else Verdict.RECODED, tuple(walk.coerced[:MOST_PATHS]))


def _read(file: bytes | memoryview) -> _Side:
    meta = file_meta_of(file)
    return _Side(meta, read_instance(file), file[meta.data_set_offset :])


_Terms = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Level:
    """Two data sets that stand at the same place, and what they inherit from there."""

    one: DataSet
    other: DataSet
    terms: tuple[_Terms, _Terms] = ((), ())
    path: str = ""
    coercible: bool = True


class _Walk:
    """Both trees side by side, to the first `MOST_PATHS` conflicts."""

    def __init__(self, a: _Side, b: _Side) -> None:
        self.conflicts: list[str] = []
        self.coerced: list[str] = []
        self.lossy = False
        self._a, self._b = a, b
        recompressed = a.meta.transfer_syntax_uid != b.meta.transfer_syntax_uid
        self._aside = _OF_THE_ENCODING | _BY_COMPRESSORS if recompressed else _OF_THE_ENCODING

    def data_sets(self, level: _Level) -> None:
        """Note where two data sets differ.

        Raises:
            Unparseable: a sequence in them cannot be read.
        """
        terms = terms_of(level.one, level.terms[0]) or (), terms_of(level.other, level.terms[1]) or ()
        for tag in sorted(level.one.keys() | level.other.keys()):
            if len(self.conflicts) >= MOST_PATHS:
                return
            if tag & 0xFFFF == 0 or (tag in self._aside and (not level.path or tag in _OF_ANY_ENCODING)):
                continue
            path = f"{level.path}{_name(tag)}"
            x, y = level.one.get(tag), level.other.get(tag)
            if x is None or y is None:
                self._note(tag, path, level)
            elif _is_sequence(x, tag) or _is_sequence(y, tag):
                self._sequences(x, y, _Level({}, {}, terms, path, level.coercible))
            elif not _same_value(x, y, terms, swapped=self._a.little != self._b.little):
                self._note(tag, path, level)

    def _sequences(self, x: Element, y: Element, level: _Level) -> None:
        ones, others = items_of(x, little=self._a.little), items_of(y, little=self._b.little)
        coerced = level.coercible and x.tag in COERCED
        # Of a coerced sequence it does not matter which items changed.
        walk = _Walk(self._a, self._b) if coerced else self
        if len(ones) != len(others):
            self._note(x.tag, level.path, level)
            return
        for number, (one, other) in enumerate(zip(ones, others, strict=True)):
            within = f"{level.path}[{number}]."
            walk.data_sets(_Level(one, other, level.terms, within, level.coercible and x.tag == _REQUEST_ATTRIBUTES))
        if coerced and walk.conflicts:
            self._note(x.tag, level.path, level)

    def _note(self, tag: int, path: str, level: _Level) -> None:
        if level.coercible and tag in COERCED:
            self.coerced.append(path)
        else:
            self.conflicts.append(path)
            self.lossy = self.lossy or tag in _LOSSY


def _is_sequence(element: Element, tag: int) -> bool:
    return element.items is not None or element.vr == "SQ" or vr_of(tag) == "SQ"


def _same_value(x: Element, y: Element, terms: tuple[_Terms, _Terms], *, swapped: bool) -> bool:
    # One that is written in implicit VR may be known only by the other's.
    vr = x.vr if len(x.vr) == 2 and x.vr != UNKNOWN else y.vr
    other_vr = y.vr if len(y.vr) == 2 and y.vr != UNKNOWN else vr
    if vr in _TEXT and other_vr in _TEXT:
        return _text(x, vr, terms[0]) == _text(y, other_vr, terms[1])
    if vr in _TEXT or other_vr in _TEXT:
        return False
    return _equal(x.value, y.value, width=_WIDTHS.get(vr, 1) if swapped else 1)


def _text(element: Element, vr: str, terms: _Terms) -> tuple[str, ...]:
    """The values without what PS3.5 6.2 calls insignificant."""
    raw = bytes(element.value)
    text = decode(raw, terms) if vr in CHARACTER_SET_VRS else raw.decode("latin-1")
    if text is None:
        # No text in its character set: only the same bytes are the same.
        return ("\0undecodable", raw.rstrip(b"\0 ").hex())
    text = text.rstrip("\0")
    values = (text,) if vr in _ONE_VALUE else tuple(text.split("\\"))
    if vr == "PN":
        return tuple("=".join(group.rstrip("^ ") for group in value.split("=")).rstrip("= ") for value in values)
    return tuple(value.rstrip("\0 ") if vr in _LEADING_SPACES else value.strip("\0 ") for value in values)


def _equal(one: bytes | memoryview, other: bytes | memoryview, *, width: int = 1) -> bool:
    """Whether the bytes are the same, or, with a width, the same in the other byte order; a block at a time."""
    if len(one) != len(other):
        return False
    for start in range(0, len(one), _BLOCK):
        block, twin = bytes(one[start : start + _BLOCK]), bytes(other[start : start + _BLOCK])
        if width > 1 and len(block) % width == 0:
            block = np.frombuffer(block, dtype=f"u{width}").byteswap().tobytes()
        if block != twin:
            return False
    return True


def _pixels_differ(a: _Side, b: _Side) -> int | None:
    """The tag of the element by which the images differ, None where they do not."""
    x, y = a.instance.root.get(_PIXEL_DATA), b.instance.root.get(_PIXEL_DATA)
    photometric = [side.instance.value(_PHOTOMETRIC_INTERPRETATION).strip() for side in (a, b)]
    if x is None or y is None:
        return _PIXEL_DATA if x is not y else (_PHOTOMETRIC_INTERPRETATION if photometric[0] != photometric[1] else None)
    planar = a.instance.number(0x00280006) == b.instance.number(0x00280006)
    if planar and photometric[0] == photometric[1] and _same_bytes(a, b, x, y):
        return None
    # Unused bits are nobody's, unless an overlay is in them.
    stored = a.instance.number(0x00280101)
    used = not _embedded_overlay(a.instance)
    mask = (1 << stored) - 1 if stored and used else None
    decoded = [_frames(side, element, correct=used) for side, element in ((a, x), (b, y))]
    while True:
        (one, kind), (other, other_kind) = (next(frames, _NO_MORE) for frames in decoded)
        if one is None or other is None:
            return None if one is other else _PIXEL_DATA
        if kind != other_kind:
            return _PHOTOMETRIC_INTERPRETATION
        if not _same_frame(one, other, mask):
            return _PIXEL_DATA


def _same_bytes(a: _Side, b: _Side, x: Element, y: Element) -> bool:
    if x.encapsulated or y.encapsulated:
        return x.encapsulated == y.encapsulated and a.meta.transfer_syntax_uid == b.meta.transfer_syntax_uid and _equal(x.value, y.value)
    return a.little == b.little and _equal(x.value, y.value)


def _same_frame(one: _Pixels, other: _Pixels, mask: int | None) -> bool:
    if one.shape != other.shape:
        return False
    if mask is not None and one.dtype.kind in "iu" and other.dtype.kind in "iu" and one.dtype.itemsize == other.dtype.itemsize:
        unsigned = f"u{one.dtype.itemsize}"
        bits = np.array(mask & ((1 << 8 * one.dtype.itemsize) - 1), dtype=unsigned)
        # High Bit is Bits Stored - 1 in every image of today's Standard (PS3.5 8.1.1).
        return bool(np.array_equal(_native(one).view(unsigned) & bits, _native(other).view(unsigned) & bits))
    return bool(np.array_equal(one, other))


def _native(pixels: _Pixels) -> _Pixels:
    return np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))


def _embedded_overlay(instance: Instance) -> bool:
    """Whether an overlay stands in bits of the pixels (retired, PS3.3 C.9.2): its bit position is not 0."""
    return any(
        tag & 0xFF01FFFF == 0x60000102 and any(bytes(element.value)) and 0x60003000 | tag & 0x00FE0000 not in instance.root
        for tag, element in instance.root.items()
    )


def _frames(side: _Side, element: Element, *, correct: bool) -> Iterator[tuple[_Pixels, str]]:
    """The frames, decoded one at a time, with the photometric interpretation that they have then.

    Raises:
        _Undecodable: no decoder here, or the codestream is not what the elements say.
    """
    instance = side.instance
    try:
        shape = _Shape.of(instance)
        uid = EXPLICIT_LITTLE if side.instance.syntax.uid in NATIVE and side.little else side.instance.syntax.uid
        options: dict[str, Any] = {
            "rows": shape.rows,
            "columns": shape.columns,
            "number_of_frames": shape.frames,
            "samples_per_pixel": shape.samples,
            "photometric_interpretation": instance.value(_PHOTOMETRIC_INTERPRETATION).strip(),
            "bits_allocated": shape.allocated,
            "bits_stored": shape.stored,
            "pixel_representation": instance.number(0x00280103) or 0,
            "pixel_keyword": "PixelData",
            "pixel_vr": element.vr if element.vr in {"OB", "OW"} else "OW",
            "raw": True,
            "correct_unused_bits": correct,
        }
        if shape.samples > 1:
            options["planar_configuration"] = instance.number(0x00280006) or 0
        source: memoryview | io.BufferedReader = memoryview(element.value)
        if element.encapsulated:
            extended = [bytes(instance.root[tag].value) for tag in (0x7FE00001, 0x7FE00002) if tag in instance.root]
            offsets = (extended[0], extended[1]) if len(extended) == 2 else None
            if offsets:
                options["extended_offsets"] = offsets
            for frame in generate_frames(_stream(element.value), number_of_frames=shape.frames, extended_offsets=offsets):
                shape.check(frame)
            source = _stream(element.value)
        elif len(element.value) < shape.bits // 8:
            raise _Undecodable("the pixel data is shorter than its elements say")
        for pixels, properties in get_decoder(UID(uid)).iter_array(source, **options):
            yield pixels, str(properties["photometric_interpretation"])
    except _DECODER_ERRORS as error:
        # The decoders raise what they like.
        raise _Undecodable(type(error).__name__) from None


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the elements say of the frames."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    frames: int

    @classmethod
    def of(cls, instance: Instance) -> "_Shape":
        rows, columns, samples, allocated, stored = (
            instance.number(tag) or 0 for tag in (0x00280010, 0x00280011, 0x00280002, 0x00280100, 0x00280101)
        )
        shape = cls(rows, columns, samples, allocated, stored, instance.number(0x00280008) or 1)
        if not (rows and columns and samples and allocated and stored):
            raise _Undecodable("the elements do not say what the pixels are")
        if shape.bits // shape.frames // 8 > MOST_FRAME_BYTES:
            raise _Undecodable("a frame is too large to decode")
        return shape

    @property
    def bits(self) -> int:
        return self.rows * self.columns * self.samples * self.allocated * self.frames

    def check(self, frame: bytes) -> None:
        """See that a codestream has the size that the elements say: a decoder believes the codestream, whatever memory it asks for."""
        size = _size_of(frame)
        if size is not None and size != (self.rows, self.columns):
            raise _Undecodable("the codestream has another size than the elements say")


def _size_of(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns by the codestream's own header; None where it is neither JPEG nor JPEG 2000."""
    if frame.startswith(b"\xff\x4f\xff\x51"):  # ISO/IEC 15444-1 A.5.1: SOC, SIZ
        width, height, left, top = struct.unpack_from(">4L", frame, 8)
        return height - top, width - left
    if not frame.startswith(b"\xff\xd8"):
        return None
    place = 2  # ISO/IEC 10918-1 B.1.1: a marker, its segment's length, the segment
    while place + 9 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):
            height, width = struct.unpack_from(">HH", frame, place + 5)
            return height, width
        else:
            place += 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    raise _Undecodable("a JPEG without a frame header")


class _View(io.RawIOBase):
    """Bytes as a file, without a copy of them; then the delimiter that ends encapsulated pixel data."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place}.get(whence, len(self._content) + len(_END))
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 -- typeshed's WriteableBuffer
        size = len(self._content)
        source = self._content[self._place :] if self._place < size else memoryview(_END)[self._place - size :]
        count = min(len(buffer), len(source))
        buffer[:count] = source[:count]
        self._place += count
        return count


def _stream(value: bytes | memoryview) -> io.BufferedReader:
    return io.BufferedReader(_View(memoryview(value)), 64 * 2**10)


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
