"""What is one instance in another encoding, and what is another one; with DCMTK's conversions, which routers and archives use."""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_deidentification import sameness
from hub_deidentification.sameness import COERCED, Comparison, Verdict, compare
from hub_dicom import read_file_meta
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import keyword_dict
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless
from support.deidentified import ct, encoded

NAME = "Müller^Jürgen"
CONVERSIONS: dict[str, tuple[list[str], Verdict]] = {
    "implicit VR": (["dcmconv", "+ti"], Verdict.RECODED),
    "big endian": (["dcmconv", "+tb"], Verdict.RECODED),
    "deflated": (["dcmconv", "+td"], Verdict.RECODED),
    "group lengths": (["dcmconv", "+g"], Verdict.RECODED),
    "padding": (["dcmconv", "+p", "512", "64"], Verdict.RECODED),
    "undefined lengths": (["dcmconv", "-e"], Verdict.RECODED),
    "UTF-8": (["dcmconv", "+U8"], Verdict.RECODED),
    "JPEG-LS": (["dcmcjpls", "+el"], Verdict.RECODED),
    "RLE": (["dcmcrle"], Verdict.RECODED),
    "JPEG lossless": (["dcmcjpeg", "+e1"], Verdict.RECODED),
    "Patient ID": (["dcmodify", "-nb", "-m", "PatientID=COERCED"], Verdict.COERCED),
    "issuer": (["dcmodify", "-nb", "-i", "IssuerOfPatientID=HUB"], Verdict.COERCED),
    "accession number": (["dcmodify", "-nb", "-i", "AccessionNumber=42"], Verdict.COERCED),
    "accession number's issuer": (
        ["dcmodify", "-nb", "-i", "IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID=HUB"],
        Verdict.COERCED,
    ),
    "request": (["dcmodify", "-nb", "-m", "RequestAttributesSequence[0].RequestedProcedureID=9"], Verdict.COERCED),
    "name": (["dcmodify", "-nb", "-m", "PatientName=OTHER"], Verdict.CONFLICT),
    "nested element": (["dcmodify", "-nb", "-m", "ReferencedImageSequence[0].ReferencedSOPInstanceUID=1.2.3"], Verdict.CONFLICT),
    "identifier within another sequence": (["dcmodify", "-nb", "-m", "ReferencedPatientPhotoSequence[0].StudyID=9"], Verdict.CONFLICT),
    "element more": (["dcmodify", "-nb", "-i", "StudyComments=more"], Verdict.CONFLICT),
    "element less": (["dcmodify", "-nb", "-e", "ImageType"], Verdict.CONFLICT),
    "inverted": (["dcmodify", "-nb", "-m", "PhotometricInterpretation=MONOCHROME1"], Verdict.CONFLICT),
    "JPEG-LS near lossless": (["dcmcjpls", "+en", "+md", "9", "+un"], Verdict.CONFLICT),
}


def image(**values: object) -> Dataset:
    """A CT that has what conversions meet: umlauts, sequences, private elements, 64 x 64 pixels with a sign."""
    item, request, nested = Dataset(), Dataset(), Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3.4"
    request.RequestedProcedureID = "R1"
    nested.StudyID = "5"
    data_set = ct(
        SpecificCharacterSet="ISO_IR 100",
        PatientName=NAME,
        ReferencedImageSequence=Sequence([item]),
        RequestAttributesSequence=Sequence([request]),
        ReferencedPatientPhotoSequence=Sequence([nested]),
        ImagePositionPatient=["1.0", "-2.5", "3"],
        SmallestImagePixelValue=0,
        Rows=64,
        Columns=64,
        PixelData=b"".join(((7 * number) % 4096).to_bytes(2, "little") for number in range(4096)),
    )
    data_set.private_block(0x0029, "MAKER", create=True).add_new(1, "LO", "Größe")
    for keyword, value in values.items():
        setattr(data_set, keyword, value)
    return data_set


def convert(content: bytes, command: list[str], folder: Path) -> bytes:
    """The file after a program of DCMTK."""
    program = shutil.which(command[0])
    assert program, f"{command[0]} is missing: apt-get install dcmtk"
    before, after = folder / "before.dcm", folder / "after.dcm"
    before.write_bytes(content)
    arguments = [*command[1:], str(before)] if command[0] == "dcmodify" else [*command[1:], str(before), str(after)]
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (before if command[0] == "dcmodify" else after).read_bytes()


@pytest.mark.peers
@pytest.mark.parametrize("name", CONVERSIONS)
def test_what_a_router_s_conversion_makes(name: str, tmp_path: Path) -> None:
    command, verdict = CONVERSIONS[name]
    content = encoded(image())
    converted = convert(content, command, tmp_path)
    assert converted != content
    found = compare(content, converted)
    assert found.verdict is verdict, found
    assert compare(converted, content).verdict is verdict


@pytest.mark.peers
def test_a_conversion_and_a_coercion_together_are_coerced(tmp_path: Path) -> None:
    content = convert(encoded(image()), ["dcmodify", "-nb", "-m", "PatientID=COERCED"], tmp_path)
    found = compare(encoded(image()), convert(content, ["dcmcjpls", "+el"], tmp_path))
    assert found == Comparison(Verdict.COERCED, ("(0010,0020)",))


@pytest.mark.peers
def test_back_from_jpeg_ls_is_still_the_same_image(tmp_path: Path) -> None:
    content = encoded(image())
    packed = convert(content, ["dcmcjpls", "+el"], tmp_path)
    assert compare(packed, convert(packed, ["dcmdjpls", "+ti"], tmp_path)).verdict is Verdict.RECODED


@pytest.mark.peers
def test_a_conflict_says_where_and_why_and_no_value(tmp_path: Path) -> None:
    content = encoded(image())
    lossy = compare(content, convert(content, ["dcmcjpls", "+en", "+md", "9", "+un"], tmp_path))
    assert (lossy.because, "(0028,2110)" in lossy.differs) == ("lossy", True)
    nested = compare(content, convert(content, CONVERSIONS["nested element"][0], tmp_path))
    assert (nested.because, nested.differs) == ("elements", ("(0008,1140)[0].(0008,1155)",))
    photo = compare(content, convert(content, CONVERSIONS["identifier within another sequence"][0], tmp_path))
    assert photo.differs == ("(0010,1100)[0].(0020,0010)",)
    request = compare(content, convert(content, CONVERSIONS["request"][0], tmp_path))
    assert request.differs == ("(0040,0275)[0].(0040,1001)",)


@pytest.mark.peers
@pytest.mark.parametrize("command", [["dcmcjpls", "+el"], ["dcmcrle"], ["dcmconv", "+tb"]])
def test_one_pixel_is_enough_for_a_conflict(command: list[str], tmp_path: Path) -> None:
    changed = image()
    changed.PixelData = changed.PixelData[:4000] + b"\x00\x00" + changed.PixelData[4002:]
    found = compare(encoded(image()), convert(encoded(changed), command, tmp_path))
    assert found == Comparison(Verdict.CONFLICT, ("(7FE0,0010)",), "pixels")


@pytest.mark.peers
def test_signed_pixels_and_colours_and_many_frames_are_the_same_in_every_lossless_encoding(tmp_path: Path) -> None:
    signed = image(PixelRepresentation=1, BitsStored=12)
    colour = image(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8, BitsStored=8, HighBit=7)
    colour.PixelData = bytes(number % 251 for number in range(3 * 4096))
    frames = image(NumberOfFrames=3)
    frames.PixelData *= 3
    for one in (colour, frames):
        for command in (["dcmcjpls", "+el"], ["dcmcrle"]):
            found = compare(encoded(one), convert(encoded(one), command, tmp_path))
            assert found.verdict is Verdict.RECODED, (command, found)
    found = compare(encoded(signed), convert(encoded(signed), ["dcmcjpls", "+el"], tmp_path))
    assert found.verdict is Verdict.RECODED, found


def test_jpeg_2000_of_a_real_image_is_the_image() -> None:
    """pydicom-data's pairs of one image, uncompressed by other software."""
    for name, other in (("MR_small.dcm", "MR_small_jp2klossless.dcm"), ("US1_UNCR.dcm", "US1_J2KR.dcm")):
        paths = [get_testdata_file(each, download=False) for each in (name, other)]
        assert all(paths), f"{name} or {other} is missing: make setup installs pydicom-data"
        one, two = (dcmread(str(path)) for path in paths)
        packed = dcmread(str(paths[0]))
        packed.PixelData, packed["PixelData"].is_undefined_length = two.PixelData, True
        packed.PhotometricInterpretation = two.PhotometricInterpretation
        found = compare(encoded(one, one.file_meta.TransferSyntaxUID), encoded(packed, two.file_meta.TransferSyntaxUID))
        assert found.verdict is Verdict.RECODED, (name, found)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_a_conflict_hides_in_no_encoding(syntax: object) -> None:
    for keyword, value in (
        ("Rows", 32),
        ("ImagePositionPatient", ["1.0", "-2.5", "4"]),
        ("PatientName", "Muller^Jurgen"),
        ("SeriesNumber", 3),
    ):
        found = compare(encoded(image()), encoded(image(**{keyword: value}), syntax))  # type: ignore[arg-type]  # one of three UIDs
        assert (found.verdict, found.differs[0]) == (Verdict.CONFLICT, _path(keyword))


def test_another_file_meta_around_the_same_data_set_is_the_same() -> None:
    content = encoded(image())
    start = read_file_meta(content).data_set_offset
    assert compare(content, b"X" * 128 + content[128:start] + content[start:]).verdict is Verdict.SAME


def test_what_cannot_be_read_or_decoded_is_a_conflict_that_says_so() -> None:
    content = encoded(image())
    assert compare(content, content[:-10]) == Comparison(Verdict.CONFLICT, because="unreadable")
    assert compare(content, b"") == Comparison(Verdict.CONFLICT, because="unreadable")
    packed = image()
    packed.PixelData = b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0\x04\x00\x00\x00ABCD"
    packed["PixelData"].is_undefined_length = True
    packed["PixelData"].VR = "OB"
    for syntax in (JPEG2000Lossless, JPEGLSLossless):
        assert compare(content, encoded(packed, syntax)).because == "undecodable"
    # The same codestream needs no decoder.
    assert compare(encoded(packed, JPEGLSLossless), b"X" * 128 + encoded(packed, JPEGLSLossless)[128:]).verdict is Verdict.SAME


@pytest.mark.peers
def test_a_codestream_that_claims_another_size_is_not_decoded(tmp_path: Path) -> None:
    packed = convert(encoded(image()), ["dcmcjpls", "+el"], tmp_path)
    place = packed.index(b"\xff\xf7")
    claim = packed[: place + 5] + (60000).to_bytes(2, "big") * 2 + packed[place + 9 :]
    begin = time.monotonic()
    assert compare(encoded(image()), claim).because == "undecodable"
    assert time.monotonic() - begin < 10  # a decoder that believed it would work for minutes


def test_bits_beside_the_pixels_count_only_where_an_overlay_is_in_them(tmp_path: Path) -> None:
    dirty = image()
    dirty.PixelData = dirty.PixelData[:1] + bytes([dirty.PixelData[1] | 0x80]) + dirty.PixelData[2:]
    assert compare(encoded(image()), encoded(dirty)).verdict is Verdict.RECODED

    def with_overlay(data_set: Dataset) -> bytes:
        data_set.add_new(0x60000100, "US", 16)
        data_set.add_new(0x60000102, "US", 15)
        return encoded(data_set)

    assert compare(with_overlay(image()), with_overlay(dirty)).because == "pixels"


def test_the_list_of_coerced_identifiers_names_what_it_says() -> None:
    assert {keyword_dict[keyword]: keyword for keyword in COERCED.values()} == COERCED


@pytest.mark.peers
def test_frames_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    frames = image(NumberOfFrames=8)
    frames.PixelData = b"".join(bytes([number]) + frames.PixelData[1:] for number in range(8))
    other = encoded(frames)
    frames.PixelData = frames.PixelData[:-1] + b"\x01"
    seen: list[int] = []
    same_frame: Callable[..., bool] = sameness._same_frame

    def count(one: Any, two: Any, mask: Any) -> bool:
        seen.append(one.size)
        return same_frame(one, two, mask)

    monkeypatch.setattr(sameness, "_same_frame", count)
    assert compare(other, convert(encoded(frames), ["dcmcjpls", "+el"], tmp_path)).because == "pixels"
    assert seen == [4096] * 8


def _path(keyword: str) -> str:
    tag = keyword_dict[keyword]
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
