"""multipart/related (RFC 2387, RFC 2046 5.1) read as it arrives, in bounded memory, whatever it is made of. No I/O."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

MAXIMUM_HEADER_BYTES: Final = 16 * 1024
"""Of one part's header fields together."""
MAXIMUM_PREAMBLE_BYTES: Final = 64 * 1024
MAXIMUM_PARTS: Final = 50_000
_MAXIMUM_PADDING: Final = 256

# RFC 2046 allows 70 characters; Orthanc sends 73.
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,199}[0-9A-Za-z'()+_,\-./:=?]")
_WORD: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER: Final = re.compile(rf'\s*;\s*(?:({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))\s*)?')
_MEDIA_TYPE: Final = re.compile(rf"\s*({_WORD}/{_WORD})\s*")
_FIELD_NAME: Final = re.compile(_WORD)


class Malformed(ValueError):
    """This is no multipart body. The text says why and holds nothing of it."""


@dataclass(frozen=True, slots=True)
class PartBegins:
    """A part's header fields, names in lower case."""

    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PartData:
    """Some of the part's bytes, at least one."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnds:
    """The part is whole."""


Piece = PartBegins | PartData | PartEnds


def media_type(text: str) -> tuple[str, dict[str, str]]:
    """Type and parameters of a Content-Type; the type and the parameters' names in lower case (RFC 9110 8.3.1).

    Raises:
        Malformed: it is none.
    """
    kind = _MEDIA_TYPE.match(text)
    if kind is None:
        raise Malformed("the Content-Type is no media type")
    parameters: dict[str, str] = {}
    place = kind.end()
    while place < len(text):
        found = _PARAMETER.match(text, place)
        if found is None:
            raise Malformed("the parameters of the Content-Type cannot be read")
        if found[1] is not None:
            quoted = re.sub(r"\\(.)", r"\1", found[2]) if found[2] is not None else found[3]
            if parameters.setdefault(found[1].lower(), quoted) != quoted:
                raise Malformed(f"the Content-Type says {found[1].lower()} twice")
        place = found.end()
    return kind[1].lower(), parameters


class MultipartReader:
    """Takes a body in chunks of any size and gives its parts in pieces. Holds at most a chunk and `MAXIMUM_PREAMBLE_BYTES` of it."""

    def __init__(self, boundary: str) -> None:
        """`boundary`: the parameter of the Content-Type.

        Raises:
            Malformed: it cannot be a boundary (RFC 2046 5.1.1; up to 200 characters are taken).
        """
        if not _BOUNDARY.fullmatch(boundary):
            raise Malformed("the boundary is missing, or is none (RFC 2046 5.1.1)")
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        # The first delimiter needs no line end before it.
        self._buffer = bytearray(b"\r\n")
        self._step = self._preamble
        self._body_start = 0
        self._parts = 0
        self._skipped = 0

    @property
    def parts(self) -> int:
        """How many parts have begun."""
        return self._parts

    @property
    def ended(self) -> bool:
        """Whether the closing delimiter was seen; what follows means nothing."""
        return self._step == self._epilogue

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        """What can be said now. Exhaust it before the next call.

        Raises:
            Malformed: no body goes on like this; the part that began last is not whole.
        """
        self._buffer += chunk
        while True:
            step = self._step
            piece = step()
            if piece is not None:
                yield piece
            elif self._step == step:
                return

    def close(self) -> None:
        """The body is over.

        Raises:
            Malformed: the closing delimiter has not come: it is cut off; or there was no part.
        """
        if not self.ended:
            raise Malformed(
                "the boundary does not come" if self._step == self._preamble else "the body is cut off: its closing boundary is missing"
            )
        if not self._parts:
            raise Malformed("there is no part between the boundaries")

    # Each step takes from the buffer what it understands; None and the same step again: it needs more.

    def _preamble(self) -> Piece | None:
        place = self._buffer.find(self._delimiter)
        done = max(0, len(self._buffer) - len(self._delimiter) + 1) if place < 0 else place + len(self._delimiter)
        self._skipped += done
        if self._skipped > MAXIMUM_PREAMBLE_BYTES:
            raise Malformed("the boundary does not come")
        del self._buffer[:done]
        if place < 0:
            return None
        self._step = self._after_delimiter
        return None

    def _after_delimiter(self) -> Piece | None:
        buffer = self._buffer
        if buffer.startswith(b"--"):
            buffer.clear()
            self._step = self._epilogue
            return None
        line_end = buffer.find(b"\r\n", 0, _MAXIMUM_PADDING + 2)
        padding = bytes(buffer[: line_end if line_end >= 0 else _MAXIMUM_PADDING + 2])
        if line_end >= 0 and not padding.strip(b" \t"):
            # The line end stays: with no header field at all, the empty line after them follows at once.
            del buffer[:line_end]
            self._step = self._headers
            return None
        unfinished = padding.removesuffix(b"\r")
        if line_end >= 0 or len(padding) == _MAXIMUM_PADDING + 2 or (unfinished.strip(b" \t") and padding != b"-"):
            raise Malformed("something follows a boundary in its line")
        return None

    def _headers(self) -> Piece | None:
        end = self._buffer.find(b"\r\n\r\n", 0, MAXIMUM_HEADER_BYTES + 4)
        if end < 0:
            if len(self._buffer) >= MAXIMUM_HEADER_BYTES + 4:
                raise Malformed(f"a part has more than {MAXIMUM_HEADER_BYTES} bytes of header fields")
            return None
        self._parts += 1
        if self._parts > MAXIMUM_PARTS:
            raise Malformed(f"there are more than {MAXIMUM_PARTS} parts: send them in several requests")
        fields = _fields(bytes(self._buffer[2:end])) if end else {}
        # The empty line's end stays: it may be the one before the next delimiter, where the part has no content.
        del self._buffer[: end + 2]
        self._body_start = 2
        self._step = self._body
        return PartBegins(fields)

    def _body(self) -> Piece | None:
        buffer, start = self._buffer, self._body_start
        place = buffer.find(self._delimiter)
        if place >= 0:
            if place > start:
                data = bytes(buffer[start:place])
                del buffer[:place]
                self._body_start = 0
                return PartData(data)
            del buffer[: place + len(self._delimiter)]
            self._step = self._after_delimiter
            return PartEnds()
        # Its beginning may already be here.
        end = len(buffer) - len(self._delimiter) + 1
        if end <= start:
            return None
        data = bytes(buffer[start:end])
        del buffer[:end]
        self._body_start = 0
        return PartData(data)

    def _epilogue(self) -> Piece | None:
        self._buffer.clear()
        return None


def _fields(block: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in re.sub(rb"\r\n[ \t]+", b" ", block).split(b"\r\n"):
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not _FIELD_NAME.fullmatch(name):
            raise Malformed("a part's header fields cannot be read")
        if fields.setdefault(name.lower(), value.strip()) != value.strip():
            raise Malformed("a part says a header field twice")
    return fields
