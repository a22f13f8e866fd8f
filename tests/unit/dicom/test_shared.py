"""Keys, manifests, Part 10, trusts, modalities, synthetic images."""

import hashlib
import io
from pathlib import Path

import pytest
from hub_dicom import (
    NotPart10,
    StudyManifest,
    Trusts,
    UnusableTrusts,
    file_meta,
    instance_key,
    is_uid,
    manifest_key,
    manifest_prefix,
    modality_folder,
    parse_instance_key,
    quarantine_key,
    read_file_meta,
    revision_digest,
    study_prefix,
)
from hub_dicom.synthetic import SAYS_SO, SyntheticPatient, nhs_test_number, synthetic_series
from pydantic import ValidationError
from pydicom import dcmread

DIGEST = "0123456789abcdef" * 4


def test_keys_are_what_the_design_says() -> None:
    key = instance_key("northgate", "1.2", "1.2.3", "1.2.3.4", DIGEST)
    assert key == f"northgate/1.2/1.2.3/1.2.3.4/{DIGEST}"
    parsed = parse_instance_key(key)
    assert (parsed.trust, parsed.study_instance_uid, parsed.series_instance_uid) == ("northgate", "1.2", "1.2.3")
    assert (parsed.sop_instance_uid, parsed.sha256) == ("1.2.3.4", DIGEST)
    assert study_prefix("northgate", "1.2") == "northgate/1.2/"
    assert manifest_key("northgate", "1.2", 3) == manifest_prefix("northgate", "1.2") + "3.json" == "manifests/northgate/1.2/3.json"
    assert quarantine_key("northgate", "1.2", 3, "ingest") == "quarantine/northgate/1.2/3-ingest.json"


@pytest.mark.parametrize(
    ("trust", "study", "digest"),
    [
        ("manifests", "1.2", DIGEST),
        ("North", "1.2", DIGEST),
        ("a/b", "1.2", DIGEST),
        ("a", "1.2/..", DIGEST),
        ("a", "", DIGEST),
        ("a", "1.2\n", DIGEST),
        ("a", "1.2", DIGEST.upper()),
        ("a", "1.2", DIGEST[:-1]),
    ],
)
def test_nothing_else_becomes_a_key(trust: str, study: str, digest: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        instance_key(trust, study, "1.2", "1.2", digest)
    assert study not in str(error.value) or not study
    with pytest.raises(ValueError, match=r"."):
        parse_instance_key(f"{trust}/{study}/1.2/1.2/{digest}")


@pytest.mark.parametrize("key", ["", "a/1.2", "manifests/a/1.2/1.json", "quarantine/a/1.2/1-ingest.json", f"a/1/1/1/1/{DIGEST}"])
def test_other_keys_are_no_instances(key: str) -> None:
    with pytest.raises(ValueError, match=r"instance|parts|trust|UID|digest"):
        parse_instance_key(key)


def test_uids() -> None:
    assert all(is_uid(uid) for uid in ("1", "1.2.840.10008.1.2", "2.25." + "9" * 59, "1.02"))
    assert not any(is_uid(uid) for uid in ("", ".", "1.", ".1", "1..2", "1.2 ", "1.2\n", "a", "\uff11.\uff12", "2.25." + "9" * 60))


def test_file_meta_is_deterministic_and_pydicom_reads_it() -> None:
    meta = file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1")
    assert meta == file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1")
    read = read_file_meta(meta + b"data set")
    assert (read.sop_class_uid, read.sop_instance_uid, read.transfer_syntax_uid) == (
        "1.2.840.10008.5.1.4.1.1.2",
        "1.2.3",
        "1.2.840.10008.1.2.1",
    )
    assert read.data_set_offset == len(meta)
    known = dcmread(io.BytesIO(meta))
    assert known.preamble == bytes(128)
    assert known.file_meta.FileMetaInformationGroupLength == len(meta) - 144
    assert known.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert known.file_meta.ImplementationClassUID.is_valid


def test_what_every_stored_object_starts_with_never_changes() -> None:
    """Its digest is in the keys of objects that are stored already."""

    meta = file_meta("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1")
    assert hashlib.sha256(meta).hexdigest() == "44b4a294bf07b3a1d11b38600d1d239b126da4011a8784ea36271f16ec2a5ab3"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(132),
        bytes(128) + b"DICM",
        file_meta("1.2", "1.3", "1.4")[:-1],
        file_meta("1.2", "1.3", "1.4").replace(b"1.4\0", b"x.4\0"),
    ],
)
def test_other_content_is_no_part_10(content: bytes) -> None:
    with pytest.raises(NotPart10):
        read_file_meta(content)


def test_the_digest_of_a_revision_is_that_of_its_objects_in_any_order() -> None:
    assert revision_digest([DIGEST, "f" * 64]) == revision_digest(["f" * 64, DIGEST])
    assert revision_digest([DIGEST]) != revision_digest([DIGEST, DIGEST])
    with pytest.raises(ValidationError):
        StudyManifest(trust="a", study_instance_uid="1.2", revision=1, digest=DIGEST, instances=())


def test_modality_folders() -> None:
    assert [modality_folder(modality) for modality in ("CT", "MR", "CR", "DX ", "US", "NM", "PT", "RTDOSE", "SEG", "", None, "ct")] == [
        "ct", "mri", "xray", "xray", "us", "nm", "pet", "rt", "other", "other", "other", "ct",
    ]  # fmt: skip


GOOD = """\
trusts:
  - name: northgate
    title: Northgate Hospitals (made up)
    ae_titles: [NORTHGATE, "NG 2"]
    addresses: [10.1.0.0/16, 127.0.0.1]
    quiet_seconds: 30
    assigning_authority: RNG
    national_number: {field: PatientID, issuer: NHS}
  - name: southmead
    ae_titles: [SOUTHMEAD, NORTHGATE]
    addresses: ["2001:db8::/32", 10.2.0.0/16]
    assigning_authority: RSM
"""


def test_trusts_are_found_by_title_and_address(tmp_path: Path) -> None:
    path = tmp_path / "trusts.yaml"
    path.write_text(GOOD)
    trusts = Trusts.load(path)

    def named(title: str, address: str) -> str | None:
        trust = trusts.by_caller(title, address)
        return trust.name if trust is not None else None

    assert named("NORTHGATE", "10.1.2.3") == "northgate"
    assert named(" NG 2   ", "127.0.0.1") == "northgate"
    assert named("NORTHGATE", "10.2.0.1") == "southmead"
    assert named("NORTHGATE", "::ffff:10.1.2.3") == "northgate"
    assert named("SOUTHMEAD", "2001:db8::1") == "southmead"
    for title, address in (
        ("SOUTHMEAD", "10.1.2.3"),
        ("northgate", "10.1.2.3"),
        ("", "10.1.2.3"),
        ("NORTHGATE", "10.3.0.1"),
        ("NORTHGATE", "nowhere"),
    ):
        assert named(title, address) is None
    northgate, southmead = trusts.by_name("northgate"), trusts.by_name("southmead")
    assert northgate is not None
    assert southmead is not None
    assert (northgate.quiet_seconds, southmead.quiet_seconds) == (30, 300)
    assert northgate.national_number is not None
    assert southmead.national_number is None
    assert trusts.by_name("nobody") is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: southmead", "name: manifests", r"line 9: trusts\.1\.name: .*reserved"),
        ("name: southmead", "name: South", r"line 9: trusts\.1\.name"),
        ("10.2.0.0/16", "10.2.0.1/16", r"line 11: trusts\.1\.addresses\.1"),
        ("[SOUTHMEAD, NORTHGATE]", "[SEVENTEENLETTERSX]", r"line 10: trusts\.1\.ae_titles.*AE title"),
        ("quiet_seconds: 30", "quiet_second: 30", r"line 6: trusts\.0\.quiet_second: "),
        ("quiet_seconds: 30", "quiet_seconds: 0", r"line 6: trusts\.0\.quiet_seconds"),
        ("field: PatientID", "field: PatientName", r"line 8: trusts\.0\.national_number\.field"),
        ("    assigning_authority: RSM\n", "", r"line 9: trusts\.1\.assigning_authority: Field required"),
        ("10.2.0.0/16", "10.0.0.0/8", r"share the AE title 'NORTHGATE'"),
        ("name: southmead", "name: northgate", r"two trusts are named 'northgate'"),
        ("trusts:", "trusts: [", r"line \d+: no YAML"),
        ("trusts:", "trust:", r"line \d+: trusts?"),
    ],
)
def test_what_is_wrong_with_the_trusts_is_said_by_line_and_field(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    path = tmp_path / "trusts.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UnusableTrusts, match=said):
        Trusts.load(path)


@pytest.mark.parametrize("content", [b"", b"- 1", b"text", b"trusts: 5", b"\xff\xfe", None])
def test_other_files_are_no_trusts(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "trusts.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnusableTrusts, match=r"trusts\.yaml"):
        Trusts.load(path)


def test_synthetic_images_say_so_and_are_the_same_each_time() -> None:
    patient = SyntheticPatient("SYNTHETIC^A", "1", other_patient_ids=((nhs_test_number(5), "NHS"),))
    first, again = (list(synthetic_series(patient, study="s", instances=3, modality="MR")) for _ in range(2))
    assert first == again
    (late,) = synthetic_series(patient, study="s", instances=1, first=4, modality="MR")
    assert late.series_instance_uid == first[0].series_instance_uid
    assert len({instance.sop_instance_uid for instance in (*first, late)}) == 4
    read = dcmread(io.BytesIO(first[0].content))
    assert read.ImageComments == SAYS_SO
    assert read.SOPClassUID.name == "MR Image Storage"
    assert read.OtherPatientIDsSequence[0].IssuerOfPatientID == "NHS"
    with pytest.raises(ValueError, match="one of CT"):
        list(synthetic_series(patient, study="s", modality="XX"))


def test_test_numbers_have_check_digits() -> None:
    numbers = [nhs_test_number(number) for number in (*range(200), 99_999)]
    assert len(set(numbers)) == 201
    for number in numbers:
        total = sum(int(digit) * weight for digit, weight in zip(number, range(10, 0, -1), strict=True))
        assert total % 11 == 0
        assert number.startswith("999")
