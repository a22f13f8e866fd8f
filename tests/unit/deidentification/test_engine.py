"""What the engine does beside the table: nesting, private and unknown elements, character sets, pixels, determinism."""

import hashlib
import io
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from hub_deidentification.encoding import Unparseable
from hub_deidentification.profile import load_profile
from hub_dicom import part10
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from support.deidentified import SERIES, STUDY, ct, encoded, pseudonyms, result_of, run, spliced

NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]


def item(**values: object) -> Dataset:
    data_set = Dataset()
    for keyword, value in values.items():
        setattr(data_set, keyword, value)
    return data_set


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """An explicit VR little endian element of a VR with a 32-bit length."""
    return tag.to_bytes(4, "big")[1::-1] + tag.to_bytes(4, "big")[:1:-1] + vr + b"\0\0" + len(value).to_bytes(4, "little") + value


def test_says_what_was_done() -> None:
    result = result_of(ct())
    assert result.PatientIdentityRemoved == "YES"
    assert load_profile().identity in result.DeidentificationMethod
    assert [(code.CodeValue, code.CodingSchemeDesignator) for code in result.DeidentificationMethodCodeSequence] == [
        ("113100", "DCM"),
        ("113107", "DCM"),
    ]
    assert result.LongitudinalTemporalInformationModified == "MODIFIED"


def test_what_an_earlier_deidentification_wrote_is_replaced() -> None:
    result = result_of(ct(DeidentificationMethod="by Dr Quillfeather", LongitudinalTemporalInformationModified="UNMODIFIED"))
    assert "Quillfeather" not in result.DeidentificationMethod
    assert result.LongitudinalTemporalInformationModified == "MODIFIED"


def test_preamble_and_file_meta_are_our_own() -> None:
    source = bytearray(encoded(ct()))
    source[:128] = b"QUILLFEATHER".ljust(128)
    file = run(bytes(source)).file
    assert file[:132] == bytes(128) + b"DICM"
    meta = dcmread(io.BytesIO(file)).file_meta
    assert meta.ImplementationClassUID == part10.IMPLEMENTATION_CLASS_UID
    assert meta.MediaStorageSOPInstanceUID == dcmread(io.BytesIO(file)).SOPInstanceUID != ct().SOPInstanceUID


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_pixels_and_technical_values_stay_in_every_native_syntax(syntax: object) -> None:
    assert isinstance(syntax, type(ExplicitVRLittleEndian))
    source = ct(PixelSpacing=[0.5, 0.25], KVP="120", Manufacturer="ACME", ConvolutionKernel="B30f", RescaleSlope="1")
    file = run(encoded(source, syntax)).file
    result = dcmread(io.BytesIO(file))
    assert result.PixelData == source.PixelData
    assert (result.Rows, result.PixelSpacing, result.KVP, result.Manufacturer) == (4, [0.5, 0.25], 120, "ACME")
    # A deflated data set comes out inflated: its bytes would depend on the compressor.
    kept = ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
    assert result.file_meta.TransferSyntaxUID == kept


def test_encapsulated_pixels_stay_byte_for_byte() -> None:
    source = ct(PixelData=encapsulate([b"\xff\x4f\xff\x51not a codestream\xfe\xff\xdd\xe0 \0\0\0\0", b"second"]), NumberOfFrames=2)
    source["PixelData"].VR = "OB"
    source["PixelData"].is_undefined_length = True
    content = encoded(source, JPEG2000Lossless)
    assert content[content.index(b"\xe0\x7f\x10\x00") :] == (file := run(content).file)[file.index(b"\xe0\x7f\x10\x00") :]


def test_private_elements_go_at_every_level() -> None:
    nested = item(CodeMeaning="Chest")
    nested.add(DataElement(0x00110010, "LO", "QUILLFEATHER 1"))
    nested.add(DataElement(0x00111001, "SQ", Sequence([item(CodeMeaning="QUILLFEATHER 2")])))
    source = ct(AnatomicRegionSequence=Sequence([nested]))
    source.add(DataElement(0x00090010, "LO", "QUILLFEATHER 3"))
    file = run(encoded(source)).file
    assert b"QUILLFEATHER" not in file
    assert dcmread(io.BytesIO(file)).AnatomicRegionSequence[0].CodeMeaning == "Chest"


def test_unknown_elements_groups_and_padding_go() -> None:
    source = ct()
    for tag in (0x12340010, 0x00100FF0, 0x00281FFF, 0xFFFCFFFC):
        source.add(DataElement(tag, "OB", b"QUILLFEATHER"))
    assert b"QUILLFEATHER" not in run(encoded(source)).file


def test_group_lengths_go() -> None:
    group_length = b"\x08\0\0\0UL\x04\0\x10\0\0\0"
    assert group_length not in run(spliced(ct(), group_length)).file


def test_a_sequence_sent_as_unknown_is_cleaned_not_copied() -> None:
    inner = b"\x10\0\x10\0\x0c\0\0\0QUILLFEATHER" + b"\x08\0\x04\x01\x06\0\0\0Chest "
    sequence = b"\xfe\xff\0\xe0" + len(inner).to_bytes(4, "little") + inner
    result = dcmread(io.BytesIO(run(spliced(ct(), element(0x00082218, b"UN", sequence))).file))
    assert result.AnatomicRegionSequence[0].CodeMeaning == "Chest"
    assert result.AnatomicRegionSequence[0].PatientName == ""


def test_a_value_sent_as_unknown_is_treated_as_what_it_is() -> None:
    file = run(spliced(ct(StudyDate=None), element(0x00080020, b"UN", b"20200131") + element(0x00081060, b"UN", b"QUILLFEATHER"))).file
    assert b"QUILLFEATHER" not in file
    assert dcmread(io.BytesIO(file)).StudyDate == result_of(ct()).StudyDate


@pytest.mark.parametrize(("tag", "vr"), [(0x00080070, b"UT"), (0x00080070, b"SQ"), (0x00280030, b"UC"), (0x00082218, b"OB")])
def test_a_kept_attribute_of_another_representation_goes(tag: int, vr: bytes) -> None:
    content = b"QUILLFEATHER" if vr != b"SQ" else b"\xfe\xff\0\xe0\x14\0\0\0\x10\0\x10\0PN\x0c\0QUILLFEATHER"
    assert b"QUILLFEATHER" not in run(spliced(ct(), element(tag, vr, content))).file


def test_a_kept_sequence_that_cannot_be_read_holds_the_instance_back() -> None:
    with pytest.raises(Unparseable):
        run(spliced(ct(), element(0x00082218, b"SQ", b"QUILLFEATHER")))


def test_uids_are_consistent_in_references() -> None:
    one = ct(SOPInstanceUID="1.2.3.1", FrameOfReferenceUID="1.2.3.9")
    reference = item(ReferencedSOPClassUID=one.SOPClassUID, ReferencedSOPInstanceUID="1.2.3.1")
    other = ct(SOPInstanceUID="1.2.3.2", FrameOfReferenceUID="1.2.3.9", SourceImageSequence=Sequence([reference]))
    first, second = result_of(one), result_of(other)
    assert second.SourceImageSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert second.SourceImageSequence[0].ReferencedSOPClassUID == one.SOPClassUID
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID != one.FrameOfReferenceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.StudyInstanceUID == second.StudyInstanceUID == pseudonyms().uid(STUDY)
    assert first.SeriesInstanceUID == pseudonyms().uid(SERIES)


def test_uids_of_institutions_in_unlisted_attributes_go_and_dicoms_stay() -> None:
    code = item(CodeMeaning="Chest", CodingSchemeUID="1.2.826.0.1.3680043.47", ContextUID="1.2.840.10008.6.1.308")
    result = result_of(ct(AnatomicRegionSequence=Sequence([code])))
    assert result.AnatomicRegionSequence[0].CodingSchemeUID.startswith("2.25.")
    assert result.AnatomicRegionSequence[0].ContextUID == "1.2.840.10008.6.1.308"


def test_intervals_between_dates_stay_nested_ones_too() -> None:
    dose = item(CodeMeaning="x", ExpiryDate="20200210")
    result = result_of(
        ct(StudyDate="20200131", SeriesDate="20200201", AcquisitionDateTime="20200202030405+0100", AnatomicRegionSequence=Sequence([dose]))
    )
    found = [result.StudyDate, result.SeriesDate, result.AcquisitionDateTime[:8], result.AnatomicRegionSequence[0].ExpiryDate]
    days = [date(int(text[:4]), int(text[4:6]), int(text[6:])) for text in found]
    assert [(day - days[0]).days for day in days] == [0, 1, 2, 10]
    assert days[0] != date(2020, 1, 31)
    assert result.AcquisitionDateTime[8:] == "030405+0100"


def test_what_is_no_date_falls_to_the_basic_profile() -> None:
    source = spliced(
        ct(StudyDate=None),
        b"".join(b"\x08\0%c\0DA\x0a\0about 197%d" % (number, number % 10) for number in (0x20, 0x21, 0x22, 0x24)),
    )
    result = dcmread(io.BytesIO(run(source).file))
    assert result.StudyDate == ""
    assert result.SeriesDate == "19000101"
    assert result.AcquisitionDate == ""
    assert "OverlayDate" not in result


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("ISO_IR 100", "Größe"),
        ("ISO_IR 192", "Größe 大"),
        ("GB18030", "大小"),
        ("ISO_IR 144", "Размер"),
        (["", "ISO 2022 IR 87"], "大きさ"),
        (["", "ISO 2022 IR 149"], "크기"),
    ],
)
def test_kept_text_stays_decodable(charset: str | list[str], text: str) -> None:
    result = result_of(ct(SpecificCharacterSet=charset, Manufacturer=text))
    assert result.Manufacturer == text
    assert str(result.PatientName).startswith("Covid")


def test_text_that_its_character_set_cannot_decode_is_emptied() -> None:
    manufacturer = b"\x08\0\x70\0LO\x06\0Gr\xf6\xdfe "
    for charset in (None, "ISO_IR 192"):
        result = dcmread(io.BytesIO(run(spliced(ct(SpecificCharacterSet=charset), manufacturer)).file))
        assert result.Manufacturer == ""


def test_a_character_set_that_does_not_exist_goes() -> None:
    charset = b"\x08\0\x05\0CS\x0c\0QUILLFEATHER"
    file = run(spliced(ct(SpecificCharacterSet=None), charset)).file
    assert b"QUILLFEATHER" not in file


def test_the_source_is_not_changed() -> None:
    content = encoded(ct())
    before = hashlib.sha256(content).digest()
    run(content)
    assert hashlib.sha256(content).digest() == before


def test_the_same_bytes_come_out_of_another_process() -> None:
    nested = item(CodeMeaning="Chest", ReferencedSOPInstanceUID="1.2.3.4")
    content = encoded(ct(AnatomicRegionSequence=Sequence([nested]), OperatorsName="A^B", AcquisitionDateTime="20200101"))
    script = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]); from support.deidentified import run;"
        "print(hashlib.sha256(run(sys.stdin.buffer.read()).file).hexdigest())"
    )
    tests = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", script, tests], input=content, capture_output=True, check=True, env=environment)
    assert done.stdout.decode().strip() == hashlib.sha256(run(content).file).hexdigest()
