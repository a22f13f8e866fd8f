"""Dates move by whole days, whatever their precision; what is no date is not kept."""

from datetime import date, datetime, timedelta

import pytest
from hub_deidentification.dates import shifted
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("vr", "text", "expected"),
    [
        ("DA", "20200301", "20200229"),
        ("DA", "2020.03.01", "20200229"),
        ("DA", "20200301\\20210301", "20200229\\20210228"),
        ("DA", "20200301\\", "20200229\\"),
        ("DA", "", ""),
        ("DT", "20200301", "20200229"),
        ("DT", "20200301112233.123456+0100", "20200229112233.123456+0100"),
        ("DT", "2020030111-0530", "2020022911-0530"),
        ("DT", "202003", "202003"),
        ("DT", "2020", "2020"),
        ("DT", "2020+0000", "2020+0000"),
        ("TM", "112233.5", "112233.5"),
        ("TM", "11:22:33", "11:22:33"),
        ("TM", "235960", "235960"),
        ("SH", "+0100", "+0100"),
    ],
)
def test_moves_by_a_day(vr: str, text: str, expected: str) -> None:
    assert shifted(vr, text, -1) == expected


@pytest.mark.parametrize(
    ("vr", "text"),
    [
        ("DA", "20200230"),
        ("DA", "2020"),
        ("DA", "20200101-20200201"),
        ("DA", "QUILLFEATHER"),
        ("DA", "20200301\\unknown"),
        ("DA", "00010105"),
        ("DA", "٢٠٢٠٠٣٠١"),
        ("DT", "20201301"),
        ("DT", "20200301 1122"),
        ("DT", "202003011122+9900"),
        ("DT", "20200301112233.1234567"),
        ("TM", "2525"),
        ("TM", "lunch"),
        ("SH", "Europe/London"),
        ("OB", "20200301"),
    ],
)
def test_what_is_no_date_is_not_kept(vr: str, text: str) -> None:
    assert shifted(vr, text, -30) is None


@given(
    one=st.dates(date(1900, 1, 1), date(2100, 1, 1)),
    other=st.dates(date(1900, 1, 1), date(2100, 1, 1)),
    days=st.integers(-3650, -30),
)
def test_intervals_stay(one: date, other: date, days: int) -> None:
    moved = [shifted("DA", f"{moment:%Y%m%d}", days) or "" for moment in (one, other)]
    first, second = (date(int(text[:4]), int(text[4:6]), int(text[6:])) for text in moved)
    assert second - first == other - one
    assert first - one == timedelta(days=days)


@given(moment=st.datetimes().filter(lambda moment: moment.year >= 1000), days=st.integers(-3650, -30))
def test_a_date_and_a_date_time_of_the_same_day_move_together(moment: datetime, days: int) -> None:
    day = f"{moment:%Y%m%d}"
    as_date, as_time = shifted("DA", day, days), shifted("DT", f"{day}{moment:%H%M%S}", days)
    assert (as_date is None) == (as_time is None)
    assert as_date is None or as_time is None or as_time == as_date + f"{moment:%H%M%S}"
