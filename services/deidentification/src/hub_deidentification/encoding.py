"""A data set as a tree of encoded elements, read from bytes and written back to bytes (PS3.5 7).

Values stay as they are encoded: what is kept is kept byte for byte, and pixel data is never decoded. Sequences are read when they are
asked for. What cannot be read strictly by the Standard's encoding rules is refused, not guessed: guessing is how identifiers survive.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hub_dicom import FileMeta, NotPart10, read_file_meta

from hub_deidentification.dictionary import UNKNOWN, vr_of

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG})

PIXEL_DATA: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
MAX_DEPTH: Final = 32
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_UNDEFINED: Final = 0xFFFFFFFF
_LONG: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_SHORT: Final = frozenset(
    {"AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US"}
)
_VRS: Final = {name.encode(): name for name in _LONG | _SHORT}
_TEXT: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT"})
_INFLATED_LEAST: Final = 64 * 2**20
_INFLATED_RATIO: Final = 100


class Unparseable(ValueError):
    """The bytes are not what their transfer syntax says. The text says where and why, never what stands there."""


@dataclass(slots=True)
class Element:
    """One data element. `items` is set for a sequence that has been read, `value` for everything else."""

    tag: int
    vr: str
    value: bytes | memoryview = b""
    items: "list[DataSet] | None" = None
    encapsulated: bool = False
    implicit: bool = False
    """Whether `value` of an unread sequence is in implicit VR."""

    def text(self) -> str:
        """The value in Latin-1 without padding: for values of the default repertoire (UI, CS, DA, …)."""
        return bytes(self.value).decode("latin-1").rstrip("\0 ")


DataSet = dict[int, Element]


@dataclass(frozen=True, slots=True)
class Syntax:
    """How a data set is encoded."""

    uid: str
    implicit: bool
    little: bool
    encapsulated: bool

    @classmethod
    def of(cls, uid: str) -> "Syntax":
        """The encoding that a transfer syntax stands for; all encapsulated ones are explicit VR little endian (PS3.5 A.4)."""
        return cls(uid, implicit=uid == IMPLICIT_LITTLE, little=uid != EXPLICIT_BIG, encapsulated=uid not in NATIVE)


@dataclass(frozen=True, slots=True)
class Instance:
    """A DICOM file, read."""

    syntax: Syntax
    root: DataSet

    def value(self, tag: int) -> str:
        """A top-level value as text, empty where there is none."""
        element = self.root.get(tag)
        return "" if element is None or element.items is not None else element.text()

    def number(self, tag: int) -> int | None:
        """A top-level US or IS value, None where there is none or it is no number."""
        element = self.root.get(tag)
        if element is None or element.items is not None:
            return None
        if vr_of(tag).startswith("US"):
            return int(struct.unpack_from("<H" if self.syntax.little else ">H", element.value)[0]) if len(element.value) >= 2 else None
        text = element.text().strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None


def file_meta_of(file: bytes | memoryview) -> FileMeta:
    """The file meta information; of a mapped file it must stand in the first megabyte.

    Raises:
        Unparseable: there is none that can be used.
    """
    try:
        return read_file_meta(file if isinstance(file, bytes) else bytes(file[: 2**20]))
    except (NotPart10, struct.error) as error:
        raise Unparseable(f"file meta information: {error}") from None


def read_instance(file: bytes | memoryview) -> Instance:
    """Read a Part 10 file. A deflated data set is inflated, and is explicit VR little endian from here on.

    Raises:
        Unparseable: file meta or data set are not what they say they are.
    """
    meta = file_meta_of(file)
    uid, body = meta.transfer_syntax_uid, memoryview(file)[meta.data_set_offset :]
    if uid == DEFLATED:
        uid, body = EXPLICIT_LITTLE, memoryview(_inflate(body))
    syntax = Syntax.of(uid)
    try:
        root, _ = _Reader(body, little=syntax.little).data_set(0, len(body), implicit=syntax.implicit, delimited=False, depth=0)
    except struct.error:
        raise Unparseable("the data set ends within an element") from None
    return Instance(syntax, root)


def items_of(element: Element, *, little: bool, depth: int = 1) -> list[DataSet]:
    """The items of a sequence, read from its value where that has not been done yet. A sequence in UN is implicit VR (PS3.5 6.2.2).

    Raises:
        Unparseable: the value is not a sequence of items.
    """
    if element.items is not None:
        return element.items
    value = memoryview(element.value)
    try:
        items, _ = _Reader(value, little=little).items(0, len(value), implicit=element.implicit, delimited=False, depth=depth)
    except struct.error:
        raise Unparseable("a sequence ends within an element") from None
    return items


def _inflate(body: memoryview) -> bytes:
    limit = max(_INFLATED_LEAST, _INFLATED_RATIO * len(body))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(body, limit)
    except zlib.error:
        raise Unparseable("the deflated data set cannot be inflated") from None
    if inflater.unconsumed_tail or not inflater.eof:
        raise Unparseable("the deflated data set is cut off or inflates beyond any plausible size")
    return content


class _Reader:
    """Walks encoded elements of one byte order."""

    def __init__(self, buffer: memoryview, *, little: bool) -> None:
        self.buffer = buffer
        order = "<" if little else ">"
        self._tag = struct.Struct(order + "HH").unpack_from
        self._short = struct.Struct(order + "H").unpack_from
        self._long = struct.Struct(order + "L").unpack_from
        self._little = little

    def data_set(self, place: int, end: int, *, implicit: bool, delimited: bool, depth: int) -> tuple[DataSet, int]:
        """The elements from `place` on, to `end` or, in an item of undefined length, to its delimiter."""
        elements: DataSet = {}
        while place < end:
            if end - place < 8:
                if not delimited and not any(self.buffer[place:end]):
                    return elements, end
                raise Unparseable("the data set ends within an element")
            group, number = self._tag(self.buffer, place)
            tag = group << 16 | number
            if tag == _ITEM_END and delimited:
                return elements, place + 8
            if group == 0xFFFE or tag in elements:
                raise Unparseable("an item tag or a repeated tag stands where an element should begin")
            element, place = self._element(tag, place + 4, end, implicit=implicit, depth=depth)
            elements[tag] = element
        if delimited:
            raise Unparseable("an item of undefined length has no end")
        return elements, place

    def _element(self, tag: int, place: int, end: int, *, implicit: bool, depth: int) -> tuple[Element, int]:
        if implicit:
            vr = vr_of(tag)
            length = self._long(self.buffer, place)[0]
            place += 4
        else:
            found = _VRS.get(bytes(self.buffer[place : place + 2]))
            if found is None:
                raise Unparseable("an element has no value representation of PS3.5 6.2")
            vr = found
            if vr in _LONG:
                length = self._long(self.buffer, place + 4)[0]
                place += 8
            else:
                length = self._short(self.buffer, place + 2)[0]
                place += 4
        if length == _UNDEFINED:
            return self._undefined(tag, vr, place, end, implicit=implicit, depth=depth)
        if place + length > end:
            raise Unparseable("a value ends beyond the data set")
        within = implicit or vr == UNKNOWN
        return Element(tag, vr, self.buffer[place : place + length], implicit=within), place + length

    def _undefined(self, tag: int, vr: str, place: int, end: int, *, implicit: bool, depth: int) -> tuple[Element, int]:
        if tag in PIXEL_DATA and not implicit and vr in {"OB", "OW"}:
            stop = self._fragments(place, end)
            return Element(tag, "OB", self.buffer[place : stop - 8], encapsulated=True), stop
        if vr not in {"SQ", UNKNOWN}:
            raise Unparseable("a value of undefined length is neither a sequence nor encapsulated pixel data")
        if vr == UNKNOWN and not implicit:
            if not self._little:
                raise Unparseable("a value of unknown representation and undefined length in big endian")
            try:
                items, place_after = self.items(place, end, implicit=True, delimited=True, depth=depth + 1)
            except (Unparseable, struct.error):
                # Seen in the field: the items keep the explicit VR of what surrounds them.
                items, place_after = self.items(place, end, implicit=False, delimited=True, depth=depth + 1)
        else:
            items, place_after = self.items(place, end, implicit=implicit, delimited=True, depth=depth + 1)
        return Element(tag, "SQ", items=items), place_after

    def items(self, place: int, end: int, *, implicit: bool, delimited: bool, depth: int) -> tuple[list[DataSet], int]:
        """The items from `place` on, to `end` or to the sequence's delimiter."""
        if depth > MAX_DEPTH:
            raise Unparseable(f"sequences are nested deeper than {MAX_DEPTH}")
        items: list[DataSet] = []
        while place < end:
            group, number = self._tag(self.buffer, place)
            length = self._long(self.buffer, place + 4)[0]
            tag = group << 16 | number
            place += 8
            if tag == _SEQUENCE_END and delimited:
                return items, place
            if tag != _ITEM:
                raise Unparseable("something else stands where an item should begin")
            if length == _UNDEFINED:
                item, place = self.data_set(place, end, implicit=implicit, delimited=True, depth=depth)
            else:
                if place + length > end:
                    raise Unparseable("an item ends beyond its sequence")
                item, place = self.data_set(place, place + length, implicit=implicit, delimited=False, depth=depth)
            items.append(item)
        if delimited:
            raise Unparseable("a sequence of undefined length has no end")
        return items, place

    def _fragments(self, place: int, end: int) -> int:
        """Where encapsulated pixel data ends, after its delimiter: fragments with a length each, nothing between them (PS3.5 A.4)."""
        while place + 8 <= end:
            group, number = self._tag(self.buffer, place)
            length = self._long(self.buffer, place + 4)[0]
            tag = group << 16 | number
            place += 8
            if tag == _SEQUENCE_END and length == 0:
                return place
            if tag != _ITEM or place + length > end:
                break
            place += length
        raise Unparseable("encapsulated pixel data is not a sequence of fragments with an end")


def write(data_set: DataSet, syntax: Syntax) -> bytes:
    """The data set, encoded: tags ascending, sequences and items of defined length, so that the same tree gives the same bytes.

    Raises:
        Unparseable: an unread sequence is in it: what nobody has read must not be written.
    """
    order = "<" if syntax.little else ">"
    return b"".join(_written(data_set, syntax, struct.Struct(order + "HH"), struct.Struct(order + "H"), struct.Struct(order + "L")))


def _written(
    data_set: DataSet, syntax: Syntax, tags: struct.Struct, shorts: struct.Struct, longs: struct.Struct
) -> Iterator[bytes | memoryview]:
    for tag in sorted(data_set):
        element = data_set[tag]
        value: bytes | memoryview
        vr = element.vr
        if element.items is not None:
            value = b"".join(_items(element.items, syntax, tags, shorts, longs))
        elif vr == "SQ" or vr_of(tag) == "SQ":
            raise Unparseable("a sequence that has not been read cannot be written")
        else:
            value = element.value
            if len(value) % 2 and not element.encapsulated:
                value = bytes(value) + (b" " if vr in _TEXT else b"\0")
        length = _UNDEFINED if element.encapsulated else len(value)
        yield tags.pack(tag >> 16, tag & 0xFFFF)
        if syntax.implicit:
            yield longs.pack(length)
        else:
            if len(vr) != 2 or (vr not in _LONG and length > 0xFFFF):
                # Of several possible VRs none is certain, or the length has no room: UN says so (PS3.5 6.2.2).
                vr = UNKNOWN
            yield vr.encode() + (bytes(2) + longs.pack(length) if vr in _LONG else shorts.pack(length))
        yield value
        if element.encapsulated:
            yield tags.pack(0xFFFE, 0xE0DD) + longs.pack(0)


def _items(items: list[DataSet], syntax: Syntax, tags: struct.Struct, shorts: struct.Struct, longs: struct.Struct) -> Iterator[bytes]:
    for item in items:
        content = b"".join(_written(item, syntax, tags, shorts, longs))
        yield tags.pack(0xFFFE, 0xE000) + longs.pack(len(content)) + content
