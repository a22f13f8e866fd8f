"""Character sets, PS3.5 6.1 and PS3.3 C.12.1.1.2: which bytes are text, and which text they are."""

from functools import lru_cache
from typing import Final

from pydicom.charset import CODES_TO_ENCODINGS, python_encoding

from hub_deidentification.encoding import DataSet, Element

SPECIFIC_CHARACTER_SET: Final = 0x00080005
CHARACTER_SET_VRS: Final = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""The VRs that Specific Character Set governs."""

_DEFINED_TERMS: Final = frozenset(python_encoding) - {""}
_HANDLED_BY_PYTHON: Final = frozenset({"iso2022_jp", "iso2022_jp_2"})  # their codecs take the escape sequences themselves
_DELIMITERS: Final = b"\r\n\f\t\\^="  # after each of them the first character set holds again


def terms_of(data_set: DataSet, inherited: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """The defined terms that hold in a data set: its own, or else those of what it is nested in. None where one is not defined."""
    element = data_set.get(SPECIFIC_CHARACTER_SET)
    if element is None:
        return inherited
    if element.items is not None:
        return None
    terms = tuple(term.strip(" \0") for term in element.text().split("\\"))
    return terms if all(not term or term in _DEFINED_TERMS for term in terms) else None


def decode(value: bytes, terms: tuple[str, ...]) -> str | None:
    """The text that `value` is in these character sets, None where it is none. The default repertoire is ASCII (PS3.5 6.1.2.1)."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    first, allowed = _codecs(terms)
    try:
        if b"\x1b" not in value:
            return value.decode(first)
        if len(terms) < 2 and first in {"utf-8", "ascii"}:
            return None
        return "".join(_fragment(part, number, first, allowed) for number, part in enumerate(_fragments(value)))
    except (UnicodeDecodeError, LookupError):
        return None


def decoded(element: Element, data_set: DataSet, root: DataSet) -> str | None:
    """The text of an element of `data_set`, which is `root` or an item within it; None where it cannot be told."""
    terms = terms_of(data_set, terms_of(root) or ())
    return None if terms is None else decode(bytes(element.value), terms)


def text_of(data_set: DataSet, tag: int, root: DataSet) -> str:
    """An element of `data_set` as text without padding, whatever it takes: Latin-1 where its character set cannot be told. Empty: none."""
    element = data_set.get(tag)
    if element is None or element.items is not None:
        return ""
    return (decoded(element, data_set, root) or element.text()).strip(" \0")


@lru_cache(maxsize=256)
def _codecs(terms: tuple[str, ...]) -> tuple[str, frozenset[str]]:
    names = [_codec(term) for term in terms] or ["ascii"]
    return names[0], frozenset(names)


def _codec(term: str) -> str:
    if term in {"", "ISO_IR 6", "ISO 2022 IR 6"}:
        return "ascii"
    if term == "ISO_IR 192":
        return "utf-8"
    return python_encoding[term]


def _fragments(value: bytes) -> list[bytes]:
    first, *rest = value.split(b"\x1b")
    return [first, *(b"\x1b" + part for part in rest)]


def _fragment(part: bytes, number: int, first: str, allowed: frozenset[str]) -> str:
    if number == 0:
        return part.decode(first)
    length = 4 if part.startswith((b"\x1b$(", b"\x1b$)")) else 3
    codec = CODES_TO_ENCODINGS.get(part[:length])
    if codec is None or (codec not in allowed and part[:length] != b"\x1b(B"):
        raise LookupError("an escape sequence that the character sets do not have")
    if codec in _HANDLED_BY_PYTHON:
        return part.decode(codec)
    content = part[length:]
    end = next((place for place, byte in enumerate(content) if byte in _DELIMITERS), len(content))
    return content[:end].decode("ascii" if part[:length] == b"\x1b(B" else codec) + content[end:].decode(first)
