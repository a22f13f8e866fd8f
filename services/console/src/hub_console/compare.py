"""One instance before and after de-identification, element by element."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydicom import Dataset
from pydicom.datadict import dictionary_description
from pydicom.dataelem import DataElement
from pydicom.tag import BaseTag
from pydicom.uid import UID

Mark = Literal["kept", "changed", "removed", "added"]
_LONGEST = 160
_BULK = {"OB", "OW", "OF", "OD", "OL", "OV", "UN"}


@dataclass(frozen=True, slots=True)
class Row:
    """One element, or the heading of a sequence's item."""

    tag: str
    name: str
    keyword: str
    vr: str
    before: str
    after: str
    mark: Mark
    depth: int
    private: bool
    zone: Literal["file meta", "data set"]


def compare(before: Dataset, after: Dataset) -> list[Row]:
    """Every element of either file, file meta first, sequences in full; in the order of their tags."""
    meta_before, meta_after = getattr(before, "file_meta", Dataset()), getattr(after, "file_meta", Dataset())
    rows = list(_rows(meta_before, meta_after, 0, "file meta"))
    return [*rows, *_rows(before, after, 0, "data set")]


def preamble_words(before: bytes | None, after: bytes | None) -> str:
    """What became of the 128 bytes before DICM."""
    if not any(before or b""):
        return "empty before and after" if not any(after or b"") else "empty before, not empty after"
    return "held something, is zeros now" if not any(after or b"") else "held something and still does"


def counts(rows: list[Row]) -> dict[Mark, int]:
    """How many rows have which mark."""
    marks: tuple[Mark, ...] = ("kept", "changed", "removed", "added")
    return {mark: sum(row.mark == mark for row in rows) for mark in marks}


def show(element: DataElement) -> str:
    """An element's value for a reader: bulk data by its size, long text shortened, UIDs with their names."""
    if element.VR in _BULK and isinstance(element.value, bytes):
        return f"{len(element.value):,} bytes" if element.value else ""
    if element.VR == "SQ":
        items = len(element.value)
        return f"{items} item" + ("" if items == 1 else "s")
    values = element.value if element.VM > 1 else [element.value]
    text = "\\".join("" if value is None else str(value) for value in values)
    if element.VR == "UI":
        known = UID(text).name
        text = text if known == text else f"{text} ({known})"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _rows(before: Dataset, after: Dataset, depth: int, zone: Literal["file meta", "data set"]) -> Iterator[Row]:
    for tag in sorted(set(before.keys()) | set(after.keys())):
        old, new = _element(before, tag), _element(after, tag)
        element = old if old is not None else new
        if element is None or tag.element == 0:
            continue
        mark = _mark(old, new)
        yield Row(
            tag=f"({tag.group:04X},{tag.element:04X})",
            name=_name(tag, element),
            keyword=element.keyword,
            vr=element.VR,
            before="" if old is None else show(old),
            after="" if new is None else show(new),
            mark=mark,
            depth=depth,
            private=tag.is_private,
            zone=zone,
        )
        if element.VR == "SQ":
            old_items = [] if old is None else list(old.value)
            new_items = [] if new is None or new.VR != "SQ" else list(new.value)
            for number in range(max(len(old_items), len(new_items))):
                yield from _rows(
                    old_items[number] if number < len(old_items) else Dataset(),
                    new_items[number] if number < len(new_items) else Dataset(),
                    depth + 1,
                    zone,
                )


def _element(dataset: Dataset, tag: BaseTag) -> DataElement | None:
    return dataset.get(tag)


def _mark(old: DataElement | None, new: DataElement | None) -> Mark:
    if new is None:
        return "removed"
    if old is None:
        return "added"
    if old.VR == "SQ" and new.VR == "SQ":
        same = len(old.value) == len(new.value) and all(a == b for a, b in zip(old.value, new.value, strict=True))
        return "kept" if same else "changed"
    return "kept" if old.value == new.value else "changed"


def _name(tag: BaseTag, element: DataElement) -> str:
    if tag.is_private:
        return element.name if element.name not in {"", "Private tag data"} else "Private element"
    try:
        return dictionary_description(tag)
    except KeyError:
        return "Unknown element"
