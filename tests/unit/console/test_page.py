"""The demo's page: what it compares, and that other people's text cannot break it."""

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from hub_console.compare import Row, compare, counts, preamble_words
from hub_console.ledger import STAGES, Count
from hub_console.page import Comparison, DatasetPartShown, Page, SamePerson, Shown, render
from hub_console.picture import NotAPicture, data_uri, png
from hub_console.studies import ADA, ADA_ELSEWHERE, choose, prepare
from hub_console.tables import size
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence

EVIL = '<script>alert("x")</script>'


def test_elements_are_kept_changed_removed_or_added_in_sequences_too() -> None:
    before, after = Dataset(), Dataset()
    before.Modality = after.Modality = "CT"
    before.PatientName, after.PatientName = "Example^Ada", "S1"
    before.PatientAddress = "1 Made-up Lane"
    after.PatientIdentityRemoved = "YES"
    before.add_new(0x00091001, "LO", "private")
    before.OtherPatientIDsSequence = Sequence([item("9990000018")])
    before.RequestAttributesSequence = Sequence([item("9990000018")])
    after.RequestAttributesSequence = Sequence([item("S1")])
    rows = {(row.tag, row.depth): row for row in compare(before, after)}
    assert {place: row.mark for place, row in rows.items()} == {
        ("(0008,0060)", 0): "kept",
        ("(0009,1001)", 0): "removed",
        ("(0010,0010)", 0): "changed",
        ("(0010,1002)", 0): "removed",
        ("(0010,0020)", 1): "changed",
        ("(0010,1040)", 0): "removed",
        ("(0012,0062)", 0): "added",
        ("(0040,0275)", 0): "changed",
    }
    assert rows["(0009,1001)", 0].private
    assert (rows["(0010,1002)", 0].before, rows["(0010,1002)", 0].after) == ("1 item", "")
    assert counts(list(rows.values())) == {"kept": 1, "changed": 3, "removed": 3, "added": 1}


def test_the_file_meta_is_compared_too_and_bulk_data_is_told_by_its_size() -> None:
    before, after = Dataset(), Dataset()
    before.file_meta, after.file_meta = FileMetaDataset(), FileMetaDataset()
    before.file_meta.SourceApplicationEntityTitle = "CT01"
    before.PixelData = after.PixelData = b"\0" * 2048
    before["PixelData"].VR = after["PixelData"].VR = "OW"
    assert [(row.zone, row.mark, row.before) for row in compare(before, after)] == [
        ("file meta", "removed", "CT01"),
        ("data set", "kept", "2,048 bytes"),
    ]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (b"\0" * 128, b"\0" * 128, "empty before and after"),
        (b"GEMS", b"\0" * 128, "held something, is zeros now"),
        (b"GEMS", b"GEMS", "held something and still does"),
        (None, b"x", "empty before, not empty after"),
    ],
)
def test_the_preamble_is_told(before: bytes | None, after: bytes | None, words: str) -> None:
    assert preamble_words(before, after) == words


def test_the_page_needs_no_other_file_and_escapes_what_the_files_say() -> None:
    text = render(page())
    assert EVIL not in text
    assert "&lt;script&gt;alert" in text
    reader = Reader()
    reader.feed(text)
    assert reader.foreign == []
    assert not reader.open
    assert "This is a demo with test data." in text
    assert text.count("by the demo</span>") == 2
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "two comparisons share a filter"
    assert set(re.findall(r' for="([^"]+)"', text)) == set(ids)


def test_the_page_without_comparison_and_same_person_is_whole() -> None:
    reader = Reader()
    reader.feed(render(page(bare=True)))
    assert not reader.open


def test_every_study_of_the_demo_can_be_made_and_the_same_person_is_at_two_trusts(tmp_path: Path) -> None:
    studies = choose()
    assert len({study.trust for study in studies}) == 3
    made = [prepare(study, number, tmp_path / str(number)) for number, study in enumerate(studies)]
    assert len({one.study_instance_uid for one in made}) == len(made), "two studies of the demo are one"
    modalities = {modality for one in made for modality in one.modalities}
    assert modalities >= {"CT", "MR", "CR", "DX", "PT", "SR"}
    numbers = {}
    for one in made:
        if one.study.person in (ADA, ADA_ELSEWHERE):
            dataset = dcmread(one.files[0])
            others = [entry.PatientID for entry in dataset.get("OtherPatientIDsSequence", [])]
            numbers[one.study.trust] = {dataset.PatientID, *others}
    assert len(numbers) == 2
    assert set.intersection(*numbers.values()) == {ADA.nhs_number}
    assert all("made" in study.title for study in studies if study.make)
    again = prepare(studies[0], 0, tmp_path / "again")
    assert again.files[0].read_bytes() == made[0].files[0].read_bytes()


def test_pictures_are_made_of_compressed_monochrome1_and_colour_images_and_refused_without_pixels(tmp_path: Path) -> None:
    shown = {study.title: study for study in choose()}
    for title in ("Chest X-ray", "Ultrasound with text in its pixels", "Secondary capture of a bone scan"):
        image = Image.open(BytesIO(png(dcmread(shown[title].files[0]), 200)))
        assert max(image.size) == 200
        assert len(image.convert("L").getcolors() or ()) > 20, "the picture is of one colour"
    with pytest.raises(NotAPicture, match="no pixel data"):
        png(dcmread(shown["Structured report"].files[0]))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2_000_000, "2.0 MB"), (10**13, "10.0 TB")]
)
def test_sizes_are_told_for_readers(count: int, text: str) -> None:
    assert size(count) == text


def item(number: str) -> Dataset:
    made = Dataset()
    made.PatientID = number
    return made


def page(*, bare: bool = False) -> Page:
    row = Row("(0010,0010)", EVIL, "PatientName", "PN", EVIL, "S1", "changed", 0, False, "data set")
    nested = Row("(0010,0010)", "Patient's Name", "PatientName", "PN", "", "S1", "added", 1, False, "data set")
    picture = data_uri(b"png")
    comparison = Comparison(
        EVIL, "northgate", picture, "", EVIL, "S1", [row, nested], counts([row, nested]), False, "empty", frozenset({"PatientName"})
    )
    return Page(
        written=datetime(2026, 11, 25, 12, 0, tzinfo=UTC),
        seconds=31.4,
        comparisons=[] if bare else [comparison, comparison],
        studies=[Shown("northgate", EVIL, "pydicom", "CT", 1, outcome, EVIL, picture) for outcome in ("released", "held back", "failed")],
        stages={"northgate": {stage: Count(1, 0, 1, 4) for stage in STAGES}},
        quarantine=[] if bare else [("northgate", "deidentification", "structured-report", 1, 1)],
        same_person=None if bare else SamePerson("S1", [("northgate", "CT", "1"), ("southmoor", "MR", "2")]),
        dataset="demo",
        dataset_version=1,
        dataset_parts=[DatasetPartShown("training", "s3://datasets-training/demo/1/", 1, 1, 1, 10, "demo/dataset/training")],
        manifest_sha256="a" * 64,
        places=[("Kafka", "127.0.0.1:9092")],
        commands=[("hub status", EVIL)],
    )


class Reader(HTMLParser):
    """Finds what the page would fetch, and tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.foreign += [
            str(value) for name, value in attrs if name in {"src", "href", "data", "action"} and not str(value).startswith("data:")
        ]
        if tag in {"script", "link", "iframe", "object"}:
            self.foreign.append(tag)
        if tag not in {"meta", "img", "input", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
