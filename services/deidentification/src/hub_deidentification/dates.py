"""Dates and times, shifted by whole days (PS3.5 6.2: DA, DT, TM). What is not a date cannot be shifted, and is not kept."""

import re
from collections.abc import Callable
from datetime import date, timedelta
from typing import Final

_DA: Final = re.compile(r"(\d{4})(\d\d)(\d\d)|(\d{4})\.(\d\d)\.(\d\d)", re.ASCII)  # the second form: ACR-NEMA, PS3.5 6.2 Note to DA
_TIME: Final = r"(?:[01]\d|2[0-3])(?:[0-5]\d(?:(?:[0-5]\d|60)(?:\.\d{1,6})?)?)?"
_ZONE: Final = r"[+-](?:0\d|1[0-4])[0-5]\d"
_DT: Final = re.compile(rf"(\d{{4}})(?:(\d\d)(?:(\d\d)({_TIME})?)?)?({_ZONE})?", re.ASCII)
_TM: Final = re.compile(rf"{_TIME}|(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d{{1,6}})?", re.ASCII)
_TIMEZONE: Final = re.compile(_ZONE, re.ASCII)


def shifted(vr: str, text: str, days: int) -> str | None:
    """The value with every date in it moved by `days`, several values included; None where one of them is no date or leaves the calendar.

    Times of day and zone offsets stay: the shift is of whole days. A date without day or month is moved as its middle would be.

    Args:
        vr: DA, DT or TM; SH for Timezone Offset From UTC.
        text: the value without padding, values parted by backslashes.
        days: how far, negative for the past.
    """
    move = _MOVES.get(vr)
    if move is None:
        return None
    values = [move(value.strip(" \0"), days) for value in text.split("\\")]
    return None if any(value is None for value in values) else "\\".join(value for value in values if value is not None)


def _date(text: str, days: int) -> str | None:
    if not text:
        return text
    match = _DA.fullmatch(text)
    if match is None:
        return None
    year, month, day = match.group(1, 2, 3) if match[1] else match.group(4, 5, 6)
    moved = _moved(int(year), int(month), int(day), days)
    return None if moved is None else _stamp(moved)


def _date_time(text: str, days: int) -> str | None:
    if not text:
        return text
    match = _DT.fullmatch(text)
    if match is None:
        return None
    year, month, day, time, zone = match.groups()
    moved = _moved(int(year), int(month or 7), int(day or (15 if month else 1)), days)
    if moved is None:
        return None
    return _stamp(moved)[: 8 if day else 6 if month else 4] + (time or "") + (zone or "")


def _time(text: str, _days: int) -> str | None:
    return text if not text or _TM.fullmatch(text) else None


def _zone(text: str, _days: int) -> str | None:
    return text if not text or _TIMEZONE.fullmatch(text) else None


def _moved(year: int, month: int, day: int, days: int) -> date | None:
    try:
        return date(year, month, day) + timedelta(days=days)
    except (ValueError, OverflowError):
        return None


def _stamp(moment: date) -> str:
    return f"{moment.year:04d}{moment.month:02d}{moment.day:02d}"


_MOVES: Final[dict[str, Callable[[str, int], str | None]]] = {"DA": _date, "DT": _date_time, "TM": _time, "SH": _zone}
