"""Every row of PS3.15 Table E.1-1, at top level and inside a sequence. What is expected follows from the row's codes, not from the engine.

X: absent. Z: there, empty or a dummy. D: there, a dummy that is not empty. U: there, another UID. C (Modified Dates): there, moved.
Of a compound code the strictest that keeps every IOD conformant, its last letter.
"""

import csv
import hashlib
import io
import re
import struct
from datetime import date, datetime, timedelta
from pathlib import Path

import hub_deidentification
import pytest
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID
from support.deidentified import ct, encoded, run, spliced

TABLE = Path(hub_deidentification.__file__).parent / "data" / "ps315_e1-1.csv"
ROWS = list(csv.DictReader(TABLE.read_text().splitlines()))
WILDCARDS = {
    "(50xx,xxxx)": [0x50003000, 0x501E0010],
    "(60xx,3000)": [0x60003000, 0x601E3000],
    "(60xx,4000)": [0x60004000],
    "(gggg,eeee) where gggg is odd": [0x00091001, 0x00290010, 0x7FE11010],
}
NEEDLE = "NEEDLE47"
VALUES: dict[str, object] = {
    "AE": NEEDLE,
    "AS": "047Y",
    "CS": NEEDLE,
    "DA": "20200229",
    "DS": "47.4711",
    "DT": "20200229112233.123456+0100",
    "IS": "474711",
    "OB": NEEDLE.encode(),
    "OW": NEEDLE.encode(),
    "PN": f"{NEEDLE}^ANN",
    "TM": "112233.47",
    "UI": "1.2.826.0.1.3680043.47.11",
    "UN": NEEDLE.encode(),
    "UR": f"https://{NEEDLE.lower()}.invalid/",
    "US": 47111,
}
TIMEZONE_OFFSET = 0x00080201


def cases() -> list[tuple[int, str, dict[str, str]]]:
    found = []
    for row in ROWS:
        match = re.fullmatch(r"\((\w{4}),(\w{4})\)", row["tag"])
        known = match is not None and "x" not in row["tag"]
        tags = [int(match[1] + match[2], 16)] if match is not None and known else WILDCARDS[row["tag"]]
        found += [(tag, row["tag"], row) for tag in tags]
    return found


def vr_for(tag: int) -> str:
    if tag >> 16 & 1:
        return "LO"
    return {"OB or OW": "OW"}.get(dictionary_VR(tag), dictionary_VR(tag))


def value_for(tag: int, vr: str) -> object:
    if tag == TIMEZONE_OFFSET:
        return "+0100"
    if vr == "SQ":
        item = Dataset()
        item.PatientComments = NEEDLE
        item.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        item.ReferencedSOPInstanceUID = "1.2.826.0.1.3680043.47.11"
        return Sequence([item])
    return VALUES.get(vr, NEEDLE)


def deidentified(tag: int, vr: str, *, nested: bool) -> tuple[Dataset, bytes]:
    """The data set in which the attribute was, and the whole file."""
    element = DataElement(tag, vr, value_for(tag, vr))
    whole = ct()
    if nested:
        item = Dataset()
        item.add(element)
        around = Dataset()
        around.AnatomicRegionSequence = Sequence([item])
        whole.DerivationCodeSequence = Sequence([around])
        content = encoded(whole)
    elif tag >> 16 in {0x0000, 0x0002}:
        text = str(VALUES["UI"]).encode() + b"\0"
        content = spliced(whole, struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"UI", len(text)) + text)
    else:
        whole.add(element)
        content = encoded(whole)
    file = run(content).file
    result = dcmread(io.BytesIO(file))
    return (result.DerivationCodeSequence[0].AnatomicRegionSequence[0] if nested else result), file


def study_shift() -> timedelta:
    result = dcmread(io.BytesIO(run(encoded(ct())).file))
    return datetime.strptime(result.StudyDate, "%Y%m%d").date() - date(2020, 1, 31)  # noqa: DTZ007


def test_the_table_is_the_one_of_the_standard() -> None:
    assert len(ROWS) == 657
    assert hashlib.sha256(TABLE.read_bytes()).hexdigest() == "3d6a904cb2fc66e55af4ee2efc514a429bf20fe832da0f26d084008d9a8dbe7b"


@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
@pytest.mark.parametrize(("tag", "name", "row"), cases(), ids=lambda value: f"{value:08X}" if isinstance(value, int) else "")
def test_row(tag: int, name: str, row: dict[str, str], nested: bool) -> None:
    vr = vr_for(tag)
    where, file = deidentified(tag, vr, nested=nested)
    code = row["basic_profile"]
    found: DataElement | None = where[tag] if tag in where else None  # noqa: SIM401 -- Dataset.get is typed as giving values

    assert NEEDLE.encode() not in file.upper()
    if tag >> 16 in {0x0000, 0x0002}:
        # Command set and file meta stand in no data set (PS3.5 7.1): not even under another UID.
        assert found is None
        assert str(VALUES["UI"]).encode() not in file
    elif row["retain_longitudinal_modified_dates"] == "C" and (vr in {"DA", "DT", "TM"} or tag == TIMEZONE_OFFSET):
        assert found is not None
        assert_moved(tag, vr, str(found.value))
    else:
        assert_code(code.rsplit("/", 1)[-1], vr, found, value_for(tag, vr))


def assert_moved(tag: int, vr: str, text: str) -> None:
    expected = date(2020, 2, 29) + study_shift()
    match vr:
        case "DA":
            assert text == expected.strftime("%Y%m%d")
        case "DT":
            assert text == expected.strftime("%Y%m%d") + "112233.123456+0100"
        case _:
            assert text == value_for(tag, vr)


def assert_code(letter: str, vr: str, found: DataElement | None, source: object) -> None:
    if letter == "X":
        assert found is None
        return
    assert found is not None
    assert vr == found.VR
    if letter == "Z":
        assert found.is_empty or found.value != source
    elif letter == "U*":
        assert found.value[0].ReferencedSOPInstanceUID.startswith("2.25.")
        assert found.value[0].ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    else:
        assert letter in {"D", "U"}
        assert not found.is_empty
        assert found.value != source
        if vr == "UI":
            assert UID(found.value).is_valid
            assert found.value.startswith("2.25.")
            assert len(found.value) <= 64
