"""Every real file that pydicom, pydicom-data and deid-data carry is de-identified to a readable file, or refused for a reason."""

import io
import json
import warnings
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hub_deidentification.acceptance import REASONS, Refused
from hub_deidentification.dicom_json import metadata_line
from hub_deidentification.encoding import Unparseable, read_instance
from hub_deidentification.identity import NoPatientId
from hub_dicom import NotPart10, file_meta, read_file_meta
from pydicom.dataset import Dataset
from support.deidentified import run
from support.planted import found_needles

BINARY = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}


@cache
def candidates() -> tuple[Path, ...]:
    found: dict[str, Path] = {}
    for package, folder in (("pydicom", "data"), ("data_store", "data"), ("deid_data", "")):
        spec = find_spec(package)
        assert spec is not None, f"the package that installs {package} is missing: make setup"
        assert spec.submodule_search_locations is not None
        for path in sorted(Path(spec.submodule_search_locations[0], folder).rglob("*")):
            if path.is_file() and path.suffix not in {".py", ".pyc"}:
                found.setdefault(f"{package}/{path.name}", path)
    return tuple(path for _, path in sorted(found.items()))


@cache
def results() -> dict[Path, bytes | str]:
    """For every DICOM file among them the de-identified file, or the reason why there is none."""
    found: dict[Path, bytes | str] = {}
    for path in candidates():
        content = path.read_bytes()
        try:
            meta = read_file_meta(content)
        except NotPart10:
            continue
        stored = file_meta(meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid) + content[meta.data_set_offset :]
        try:
            found[path] = run(stored).file
        except Refused as refusal:
            found[path] = refusal.reason
        except Unparseable:
            found[path] = "cannot-be-parsed"
        except NoPatientId:
            found[path] = "no-patient-id"
    return found


def read(source: Path | bytes) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # real files hold values that are not quite of their VR
        data_set = pydicom.dcmread(source if isinstance(source, Path) else io.BytesIO(source))
        str(data_set)
        return data_set


def released() -> list[tuple[Path, bytes]]:
    return [(path, result) for path, result in results().items() if isinstance(result, bytes)]


def test_there_are_enough_of_them() -> None:
    assert len(results()) > 200
    assert len(released()) > 60
    assert {read(file).Modality for _, file in released()} >= {"CT", "MR", "CR", "RTDOSE"}


def test_what_is_not_released_has_a_known_reason() -> None:
    reasons = Counter(result for result in results().values() if isinstance(result, str))
    assert set(reasons) <= set(REASONS)
    assert reasons["secondary-capture"] > 30
    assert reasons["burned-in-risk"] > 10
    assert reasons["structured-report"] >= 2
    assert reasons["dicomdir"] >= 5


def test_known_burned_in_text_is_not_released() -> None:
    names = {path.name for path, _ in released()}
    assert not [name for name in names if name.startswith(("US1_", "OBXXXX1A", "gdcm-US-ALOKA-16", "color3d"))]


def test_pixels_are_the_same_and_nothing_private_is_left() -> None:
    for path, file in released():
        source, result = read(path), read(file)
        assert result.get("PixelData") == source.get("PixelData"), path.name
        assert result.PatientID.startswith("Covid")
        assert result.PatientIdentityRemoved == "YES"
        assert not [element for element in result.iterall() if element.tag.is_private], path.name


def test_patient_names_and_numbers_are_gone() -> None:
    for path, file in released():
        source = read(path)
        needles = {str(source.get(keyword, "")) for keyword in ("PatientName", "PatientID", "AccessionNumber", "PatientBirthDate")}
        header = file[: file.rfind(b"\xe0\x7f\x10\x00")] if "PixelData" in source else file
        assert not found_needles(header, [needle for needle in needles if len(needle) > 5]), path.name
        assert source.SOPInstanceUID.encode() not in header, path.name
        assert source.StudyInstanceUID.encode() not in header, path.name


def test_metadata_says_what_pydicom_says() -> None:
    for path, file in released():
        assert json.loads(metadata_line(read_instance(file))) == expected(read(file)), path.name


def expected(data_set: Dataset) -> dict[str, Any]:
    """The DICOM JSON that pydicom makes, without binary values."""
    found: dict[str, Any] = {}
    for element in data_set:
        if element.VR in BINARY:
            continue
        key = f"{element.tag:08X}"
        if element.VR == "SQ":
            items = [expected(item) for item in element.value]
            found[key] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
        elif element.tag == 0x00080005:
            found[key] = {"vr": "CS", "Value": ["ISO_IR 192"]} if element.value else {"vr": "CS"}
        else:
            values = [
                value.strip(" \0") or None if isinstance(value, str) else value
                for value in element.to_json_dict(None, 10**9).get("Value", [])
            ]
            found[key] = {"vr": element.VR, "Value": values} if any(value is not None for value in values) else {"vr": element.VR}
    return found


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "rtplan_truncated.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm"])
def test_truncated_files_are_refused(name: str) -> None:
    found = next(result for path, result in results().items() if path.name == name)
    assert found in {"cannot-be-parsed", "sop-class-not-handled"}
