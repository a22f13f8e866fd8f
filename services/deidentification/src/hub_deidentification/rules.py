"""PS3.15 Table E.1-1 as data: which attribute has which action code, in the Basic Profile and in each Option."""

import csv
import hashlib
import io
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

EDITION: Final = "2026c/d"
ROWS: Final = 657
SHA256: Final = "3d6a904cb2fc66e55af4ee2efc514a429bf20fe832da0f26d084008d9a8dbe7b"
_FILE: Final = "ps315_e1-1.csv"
_TAG: Final = re.compile(r"\(([0-9A-F]{4}),([0-9A-F]{4})\)")

CURVES: Final = "(50xx,xxxx)"
OVERLAY_COMMENTS: Final = "(60xx,4000)"
OVERLAY_DATA: Final = "(60xx,3000)"
PRIVATE: Final = "(gggg,eeee) where gggg is odd"
PATTERNS: Final = frozenset({CURVES, OVERLAY_COMMENTS, OVERLAY_DATA, PRIVATE})
"""The rows that stand for more than one tag."""


class UnusableRules(ValueError):
    """The table or a profile cannot be used; nothing starts before it is mended. The text says where and what is wrong."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    tag: str
    """As printed: `(0010,0010)`, or one of `PATTERNS`."""
    name: str
    codes: dict[str, str]
    """Column to code; a column without a code is not there."""

    @property
    def number(self) -> int | None:
        """The tag as a number, None for a pattern."""
        match = _TAG.fullmatch(self.tag)
        return int(match[1] + match[2], 16) if match else None


@cache
def table() -> tuple[Row, ...]:
    """Table E.1-1, checked.

    Raises:
        UnusableRules: the file is not the one that this package was made with.
    """
    content = (files("hub_deidentification") / "data" / _FILE).read_bytes()
    return parse_table(content)


def parse_table(content: bytes) -> tuple[Row, ...]:
    """The rows of the table's file.

    Raises:
        UnusableRules: its digest, number of rows, a tag or a code is not what it must be.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise UnusableRules(f"{_FILE} has SHA-256 {found[:12]}…, not {SHA256[:12]}…: install the package again")
    rows = []
    for line, fields in enumerate(csv.DictReader(io.StringIO(content.decode())), 2):
        codes = {column: code for column, code in fields.items() if code and column not in {"tag", "name", "retired", "in_standard_iod"}}
        row = Row(fields["tag"], fields["name"], codes)
        if (row.number is None and row.tag not in PATTERNS) or "basic_profile" not in codes:
            raise UnusableRules(f"{_FILE}, line {line}: not a row of Table E.1-1")
        rows.append(row)
    if len(rows) != ROWS or len({row.tag for row in rows}) != ROWS:
        raise UnusableRules(f"{_FILE} has {len(rows)} rows, not {ROWS} different ones")
    return tuple(rows)
