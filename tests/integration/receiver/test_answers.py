"""Each answer of the receiver as a sender meets it: contexts that are not taken, failures that say what to do, and what is no failure."""

import io
import socket
import time
from pathlib import Path

import pytest
from hub_dicom import parse_instance_key
from hub_dicom.synthetic import SyntheticPatient, nhs_test_number, synthetic_series, synthetic_uid
from hub_objectstore import S3ObjectStore
from pydicom import dcmread, dcmwrite
from pydicom.uid import UID
from support.dicom_files import write_series
from support.receiver_process import TRUSTS, ReceiverProcess, StartReceiver, Topic
from support.senders import association, says_what_to_do, send
from support.wire import associate_request, message, raw_association, read_comment, read_pdu, store_request

BUCKET = "identifiable"
CT = "1.2.840.10008.5.1.4.1.1.2"
PDF = "1.2.840.10008.5.1.4.1.1.104.1"
SC = "1.2.840.10008.5.1.4.1.1.7"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
PRIVATE = "1.2.840.113619.4.27"
NEWER = "1.2.840.10008.5.1.4.1.1.9999"
EXPLICIT = "1.2.840.10008.1.2.1"
JPIP = "1.2.840.10008.1.2.4.94"
PATIENT = SyntheticPatient("SYNTHETIC^ANSWERS", "A-1")


def stored(store: S3ObjectStore, trust: str, study: str) -> set[str]:
    return {parse_instance_key(info.key).sop_instance_uid for info in store.list(BUCKET, f"{trust}/{synthetic_uid(study)}/")}


def of_class(folder: Path, study: str, sop_class_uid: str) -> Path:
    """A file of that class."""
    folder.mkdir(parents=True, exist_ok=True)
    (instance,) = synthetic_series(PATIENT, study=study, instances=1)
    data_set = dcmread(io.BytesIO(instance.content))
    data_set.SOPClassUID = data_set.file_meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    path = folder / f"{study}.dcm"
    dcmwrite(path, data_set, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    ("calling", "expected"),
    [
        # The context's result, PS3.8 table 9-18: 0 acceptance, 3 abstract syntax not supported, 4 transfer syntaxes not supported.
        ("NORTHGATE", {CT: 0, PDF: 0, SC: 0, PRIVATE: 3, NEWER: 3, FIND: 3}),
        ("NETHERBY", {CT: 0, PDF: 3, SC: 0, PRIVATE: 0, NEWER: 0, FIND: 3}),
    ],
)
def test_contexts_are_chosen_by_the_trusts_rules(receiver: ReceiverProcess, calling: str, expected: dict[str, int]) -> None:
    # Several times and mixed: one association's contexts are not another's.
    for _ in range(2):
        with association(receiver.as_caller(calling), [(uid, EXPLICIT) for uid in expected]) as assoc:
            found = {str(context.abstract_syntax): context.result for context in (*assoc.accepted_contexts, *assoc.rejected_contexts)}
        assert found == expected
    with association(receiver.as_caller(calling), [(CT, JPIP), (CT, EXPLICIT)]) as assoc:
        assert [context.result for context in assoc.rejected_contexts] == [4]


def test_who_offers_only_what_is_not_wanted_is_told_so_and_may_go(receiver: ReceiverProcess) -> None:
    with association(receiver.peer, [(PRIVATE, EXPLICIT), (FIND, EXPLICIT)]) as assoc:
        assert [context.result for context in assoc.rejected_contexts] == [3, 3]
        assert assoc.accepted_contexts == []


def test_a_private_class_is_stored_and_acknowledged_where_the_trust_says_so(
    receiver: ReceiverProcess, admin_store: S3ObjectStore, topic: Topic, tmp_path: Path
) -> None:
    paths = [of_class(tmp_path, f"private-{uid}", uid) for uid in (PRIVATE, NEWER, SC)]
    assert [one.status for one in send(receiver.as_caller("NETHERBY"), paths)] == [0, 0, 0]
    assert all(len(stored(admin_store, "netherby", f"private-{uid}")) == 1 for uid in (PRIVATE, NEWER, SC))
    assert {event.data.sop_class_uid for event in topic.events()} == {PRIVATE, NEWER, SC}
    refused = of_class(tmp_path, "refused", PDF)
    assert [one.status for one in send(receiver.as_caller("NETHERBY"), [refused, paths[0]])] == [None, 0]
    assert stored(admin_store, "netherby", "refused") == set()


def test_filters_test_patients_and_conflicts_are_no_failures(
    receiver: ReceiverProcess, admin_store: S3ObjectStore, topic: Topic, tmp_path: Path
) -> None:
    test_patient = SyntheticPatient("ZZZTEST^WARD", nhs_test_number(7))
    paths = [
        *write_series(tmp_path / "good", synthetic_series(PATIENT, study="filtered", instances=2)),
        *write_series(tmp_path / "mr", synthetic_series(PATIENT, study="filtered", series=2, modality="MR", instances=1)),
        *write_series(tmp_path / "test", synthetic_series(test_patient, study="filtered", series=3, instances=1)),
        *write_series(tmp_path / "conflict", synthetic_series(test_patient, study="filtered", instances=1)),
    ]
    assert [one.status for one in send(receiver.as_caller("NETHERBY"), paths)] == [0] * 5
    assert len(stored(admin_store, "netherby", "filtered")) == 4
    assert len(topic.events()) == 5


def test_no_space_is_out_of_resources(start_receiver: StartReceiver, tmp_path: Path) -> None:
    with start_receiver(HUB_RECEIVER_FREE_BYTES=str(2**60)) as receiver:
        (full,) = send(receiver.peer, write_series(tmp_path, synthetic_series(PATIENT, study="no-space", instances=1)))
        assert full.status == 0xA700
        assert says_what_to_do(full.comment)
        assert "no-space" in {line.get("reason") for line in receiver.lines}


def test_another_class_than_the_contexts_is_refused(receiver: ReceiverProcess, admin_store: S3ObjectStore) -> None:
    (instance,) = synthetic_series(PATIENT, study="other-context", instances=1)
    request = store_request(instance.sop_instance_uid, sop_class_uid=PDF)
    with raw_association(receiver.peer.port, calling="NETHERBY") as connection:
        connection.sendall(message(request, instance.content[500:]))
        status, comment = read_comment(connection)
        assert status == 0x0122
        assert says_what_to_do(comment)
    assert stored(admin_store, "netherby", "other-context") == set()


def test_rejections_on_the_wire(receiver: ReceiverProcess) -> None:
    for calling, called, reason in (("NOBODY", "REGIONALHUB", 3), ("NORTHGATE", "ANOTHERHUB", 7)):
        with socket.create_connection(("127.0.0.1", receiver.peer.port), timeout=20) as connection:
            connection.sendall(associate_request(calling=calling, called=called))
            assert read_pdu(connection) == (3, bytes([0, 1, 1, reason]))


def test_rules_that_cannot_be_are_said_before_anybody_is_served(start_receiver: StartReceiver, tmp_path: Path) -> None:
    trusts = tmp_path / "trusts.yaml"
    trusts.write_text(TRUSTS.replace("private_sop_classes: quarantine", "private_sop_classes: maybe"))
    start = time.monotonic()
    with (
        pytest.raises(AssertionError, match=r"private_sop_classes: .*'refuse' or 'quarantine'"),
        start_receiver(HUB_TRUSTS_FILE=str(trusts)),
    ):
        pass
    assert time.monotonic() - start < 20
