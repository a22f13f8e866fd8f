"""A trust's rules over HTTP are those over DICOM: what is refused has failure reason 0122, what is only unwanted is stored."""

import io

from dicomweb_client.web import DICOMwebClient
from hub_dicom import parse_instance_key
from hub_dicom.synthetic import SyntheticPatient, nhs_test_number, synthetic_series, synthetic_uid
from hub_objectstore import S3ObjectStore
from pydicom import Dataset, dcmread
from pydicom.uid import UID
from requests import Session
from support.receiver_process import Topic
from support.stow import TOKENS, StowProcess, reasons, stored

BUCKET = "identifiable"
PDF = UID("1.2.840.10008.5.1.4.1.1.104.1")
PRIVATE = UID("1.2.840.113619.4.27")
PATIENT = SyntheticPatient("SYNTHETIC^RULES", "S-1")


def study_of(name: str) -> list[Dataset]:
    """Four CT, the second of a private class, the third a PDF by its class, the fourth of a test patient."""
    data_sets = [dcmread(io.BytesIO(one.content)) for one in synthetic_series(PATIENT, study=name, instances=4)]
    for data_set, uid in ((data_sets[1], PRIVATE), (data_sets[2], PDF)):
        data_set.SOPClassUID = data_set.file_meta.MediaStorageSOPClassUID = uid
    data_sets[3].PatientName, data_sets[3].PatientID = "ZZZTEST^WARD", nhs_test_number(3)
    return list(data_sets)


def send(stow: StowProcess, trust: str, data_sets: list[Dataset]) -> Dataset:
    with Session() as session:
        session.headers["Authorization"] = f"Bearer {TOKENS[trust]}"
        return DICOMwebClient(stow.url, session=session).store_instances(data_sets)


def in_store(store: S3ObjectStore, trust: str, study: str) -> set[str]:
    return {parse_instance_key(info.key).sop_instance_uid for info in store.list(BUCKET, f"{trust}/{synthetic_uid(study)}/")}


def test_each_trust_has_its_own_rules(stow: StowProcess, admin_store: S3ObjectStore, topic: Topic) -> None:
    for trust, refused in (("northgate", [1]), ("netherby", [2])):
        data_sets = study_of("stow-rules")
        uids = [str(one.SOPInstanceUID) for one in data_sets]
        taken = [uid for number, uid in enumerate(uids) if number not in refused]
        answer = send(stow, trust, data_sets)
        assert stored(answer) == taken
        assert reasons(answer) == [0x0122]
        assert [item.ReferencedSOPInstanceUID for item in answer.FailedSOPSequence] == [uids[number] for number in refused]
        assert in_store(admin_store, trust, "stow-rules") == set(taken)
    assert len(topic.events()) == 6
    assert stow.metric('hub_stow_failures_total{reason="sop-class-not-supported",status="0x0122",trust="netherby"}') == 1


def test_nothing_but_what_is_refused_is_a_conflict(stow: StowProcess, admin_store: S3ObjectStore) -> None:
    body_of = study_of("stow-refused")[2]
    buffer = io.BytesIO()
    body_of.save_as(buffer, enforce_file_format=True)
    part = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + buffer.getvalue() + b"\r\n--b--\r\n"
    assert stow.post(part, trust="netherby").status_code == 409
    assert stow.post(part, trust="northgate").status_code == 200
    assert (len(in_store(admin_store, "netherby", "stow-refused")), len(in_store(admin_store, "northgate", "stow-refused"))) == (0, 1)
