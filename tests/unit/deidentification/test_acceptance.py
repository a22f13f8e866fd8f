"""What is held back, with which reason; and that nothing which is accepted was meant to be held back."""

import re
from pathlib import Path

import hub_deidentification
import pytest
from hub_deidentification.acceptance import REASONS, Refused
from hub_deidentification.profile import load_profile
from hub_dicom import file_meta
from pydicom.uid import ExplicitVRLittleEndian
from support.deidentified import ct, encoded, run, spliced

SC = "1.2.840.10008.5.1.4.1.1.7"


def reason(content: bytes) -> str:
    with pytest.raises(Refused) as refusal:
        run(content)
    return refusal.value.reason


@pytest.mark.parametrize(
    ("sop_class", "expected"),
    [
        (SC, "secondary-capture"),
        (SC + ".4", "secondary-capture"),
        ("1.2.840.10008.5.1.4.1.1.88.11", "structured-report"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "structured-report"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "encapsulated-document"),
        ("1.2.840.10008.1.3.10", "dicomdir"),
        ("1.2.840.10008.5.1.4.1.1.6.1", "burned-in-risk"),
        ("1.2.840.10008.5.1.4.1.1.3.1", "burned-in-risk"),
        ("1.2.840.10008.5.1.4.1.1.77.1.4", "burned-in-risk"),
        ("1.2.840.10008.5.1.4.1.1.77.1.6", "burned-in-risk"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "sop-class-not-handled"),
        ("1.2.840.10008.5.1.4.1.1.481.5", "sop-class-not-handled"),
        ("1.2.840.10008.5.1.4.1.1.9.1.1", "sop-class-not-handled"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "sop-class-not-handled"),
        ("1.2.840.113619.4.27", "private-sop-class"),
        ("1.2.840.10008.9.9", "private-sop-class"),
    ],
)
def test_sop_classes(sop_class: str, expected: str) -> None:
    assert reason(encoded(ct(SOPClassUID=sop_class))) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned-in-annotation"),
        ({"Modality": "US"}, "burned-in-risk"),
        ({"Modality": "OT"}, "burned-in-risk"),
        ({"Modality": None}, "burned-in-risk"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "burned-in-risk"),
        ({"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]}, "burned-in-risk"),
        ({"ConversionType": "WSD"}, "burned-in-risk"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PixelData": bytes(96)}, "burned-in-risk"),
        ({"PixelData": bytes(34)}, "pixel-data-length"),
        ({"PixelData": bytes(30)}, "pixel-data-length"),
        ({"Rows": None}, "pixel-data-length"),
        ({"StudyInstanceUID": None}, "incomplete-instance"),
        ({"SOPClassUID": None}, "incomplete-instance"),
        ({"SeriesInstanceUID": None}, "incomplete-instance"),
    ],
)
def test_what_an_image_says_of_itself(values: dict[str, object], expected: str) -> None:
    assert reason(encoded(ct(**values))) == expected


def test_an_overlay_in_the_pixels() -> None:
    assert reason(spliced(ct(), b"\x00\x60\x02\x01US\x02\0\x0c\0")) == "embedded-overlay"


def test_pixels_that_do_not_fit_the_transfer_syntax() -> None:
    content = encoded(ct())
    body = content[content.index(b"\x08\0\x05\0CS") :]
    jpeg = file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.4.50") + body
    assert reason(jpeg) == "pixel-data-length"


@pytest.mark.parametrize("syntax", ["1.2.840.113619.5.2", "1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.6.1", "1.2.3"])
def test_transfer_syntaxes(syntax: str) -> None:
    assert reason(file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3", syntax) + bytes(10)) == "transfer-syntax-not-handled"


def test_a_directory_is_known_by_its_file_meta() -> None:
    assert reason(file_meta("1.2.840.10008.1.3.10", "1.2.3", str(ExplicitVRLittleEndian)) + bytes(10)) == "dicomdir"


def test_every_reason_stands_in_the_readme() -> None:
    readme = (Path(hub_deidentification.__file__).parents[2] / "README.md").read_text()
    assert {code for code in REASONS if f"`{code}`" not in readme} == set()


def test_every_reason_is_a_code() -> None:
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) for code in REASONS)
    assert set(load_profile().content.hold_back) <= set(REASONS)


def test_signed_sizes_are_not_taken_for_pixels() -> None:
    odd = ct(Rows=None)
    assert reason(spliced(odd, b"\x28\0\x10\0US\0\0")) == "pixel-data-length"
