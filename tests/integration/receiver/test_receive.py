"""What real senders send is stored byte for byte, announced, and only then acknowledged."""

import hashlib
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from hub_dicom import file_meta, instance_key, parse_instance_key, read_file_meta, read_header
from hub_dicom.storage import RETIRED_STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from hub_dicom.synthetic import SyntheticInstance, SyntheticPatient, synthetic_series, synthetic_uid
from hub_objectstore import S3ObjectStore
from support.dicom_files import real_files, write_series
from support.receiver_process import ReceiverProcess, StartReceiver, Topic
from support.senders import STORESCU, Peer, Rejected, Sent, association, echo, says_what_to_do, send, send_at_once, storescu

BUCKET = "identifiable"
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
PATIENT = SyntheticPatient("SYNTHETIC^RECEIVER", "R-1", issuer_of_patient_id="RNG")


def _series(folder: Path, study: str, instances: int = 3, pixels: int = 64) -> list[Path]:
    return write_series(folder, synthetic_series(PATIENT, study=study, instances=instances, pixels=pixels))


def _statuses(sent: Iterable[Sent]) -> list[int | None]:
    return [one.status for one in sent]


def _stored(store: S3ObjectStore, trust: str, study: str) -> dict[str, list[str]]:
    """SOP Instance UID to the digests of its contents."""
    found: dict[str, list[str]] = {}
    for info in store.list(BUCKET, f"{trust}/{study}/"):
        key = parse_instance_key(info.key)
        found.setdefault(key.sop_instance_uid, []).append(key.sha256)
    return found


def _expected_key(trust: str, content: bytes) -> tuple[str, bytes]:
    """The key and the bytes under which the data set of a DICOM file must be stored."""
    meta = read_file_meta(content)
    data_set = content[meta.data_set_offset :]
    header = read_header(data_set, meta.transfer_syntax_uid)
    stored = file_meta(meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid) + data_set
    digest = hashlib.sha256(stored).hexdigest()
    return instance_key(trust, str(header.study_instance_uid), str(header.series_instance_uid), meta.sop_instance_uid, digest), stored


def _part10(folder: Path, name: str, data_set: bytes, *, sop_class: str = CT, instance: str = "1.2.3.4", syntax: str = EXPLICIT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(file_meta(sop_class, instance, syntax) + data_set)
    return path


def _one(study: str) -> tuple[SyntheticInstance, bytes]:
    """A synthetic instance and its data set."""
    (instance,) = synthetic_series(PATIENT, study=study, instances=1)
    return instance, instance.content[read_file_meta(instance.content).data_set_offset :]


def test_echo(receiver: ReceiverProcess) -> None:
    assert echo(receiver.peer) == 0x0000
    assert echo(receiver.as_caller("SOUTHMEAD")) == 0x0000


def test_it_is_ready_when_store_and_broker_are_there(receiver: ReceiverProcess) -> None:
    receiver.wait_until(receiver.ready)


@pytest.mark.parametrize(
    ("calling", "called", "code"),
    [
        ("NOBODY", "REGIONALHUB", (1, 1, 3)),
        ("northgate", "REGIONALHUB", (1, 1, 3)),
        ("ELSEWHERE", "REGIONALHUB", (1, 1, 3)),  # a known title from an address that is not its own
        ("NORTHGATE", "ANOTHERHUB", (1, 1, 7)),
        ("NOBODY", "ANOTHERHUB", (1, 1, 3)),
    ],
)
def test_who_is_not_known_is_refused_with_the_standards_reason(
    receiver: ReceiverProcess, calling: str, called: str, code: tuple[int, int, int]
) -> None:
    for contexts in ([("1.2.840.10008.1.1", EXPLICIT)], [(CT, EXPLICIT)]):
        with pytest.raises(Rejected) as rejected, association(Peer(receiver.peer.port, called=called, calling=calling), contexts):
            pass
        assert rejected.value.code == code


def test_every_real_file_is_stored_byte_for_byte_in_its_own_transfer_syntax(
    receiver: ReceiverProcess, admin_store: S3ObjectStore, topic: Topic
) -> None:
    files = real_files()
    assert len({file.meta.transfer_syntax_uid for file in files}) >= 10
    sent = send(receiver.peer, [file.path for file in files])
    assert [(one.path.name, one.status) for one in sent if one.status != 0x0000] == []

    events = topic.events()
    assert len(events) == len(files)
    announced = {event.data.object.key: event for event in events}
    for file in files:
        key, stored = _expected_key("northgate", file.path.read_bytes())
        assert admin_store.get(BUCKET, key) == stored, file.path.name
        event = announced[key]
        assert event.key == event.data.study_instance_uid == file.header.study_instance_uid
        assert event.source == "ingest.receiver"
        assert (event.data.trust, event.data.origin, event.data.object.bucket) == ("northgate", "c-store", BUCKET)
        assert (event.data.object.size, event.data.object.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
        assert (event.data.sop_class_uid, event.data.transfer_syntax_uid) == (file.meta.sop_class_uid, file.meta.transfer_syntax_uid)


def test_one_trace_for_each_study_of_an_association(receiver: ReceiverProcess, topic: Topic, tmp_path: Path) -> None:
    paths = _series(tmp_path / "a", "trace-a") + _series(tmp_path / "b", "trace-b")
    assert set(_statuses(send(receiver.peer, paths))) == {0}
    assert set(_statuses(send(receiver.peer, paths[:3]))) == {0}
    events = topic.events()
    traces = {study: {event.trace_id for event in events if event.key == synthetic_uid(study)} for study in ("trace-a", "trace-b")}
    assert (len(traces["trace-a"]), len(traces["trace-b"])) == (2, 1)
    assert not traces["trace-a"] & traces["trace-b"]
    assert len({event.traceparent for event in events}) == len(events) == 9


def test_a_repeat_is_one_object_and_is_announced_again(
    receiver: ReceiverProcess, admin_store: S3ObjectStore, topic: Topic, tmp_path: Path
) -> None:
    paths = _series(tmp_path, "repeat")
    for _ in range(2):
        assert _statuses(send(receiver.peer, paths)) == [0, 0, 0]
    assert [len(digests) for digests in _stored(admin_store, "northgate", synthetic_uid("repeat")).values()] == [1, 1, 1]
    assert len(topic.events()) == 6
    assert receiver.metric('hub_receiver_instances_total{result="repeated",trust="northgate"}') >= 3


def test_other_content_under_the_same_uid_stands_beside_it(receiver: ReceiverProcess, admin_store: S3ObjectStore, tmp_path: Path) -> None:
    other = SyntheticPatient("SYNTHETIC^OTHER", "R-2")
    for number, patient in enumerate((PATIENT, other)):
        paths = write_series(tmp_path / str(number), synthetic_series(patient, study="variant", instances=2))
        assert _statuses(send(receiver.peer, paths)) == [0, 0]
    assert [len(digests) for digests in _stored(admin_store, "northgate", synthetic_uid("variant")).values()] == [2, 2]


def test_two_trusts_at_once_and_the_same_study_from_both(receiver: ReceiverProcess, admin_store: S3ObjectStore, tmp_path: Path) -> None:
    paths = _series(tmp_path, "shared", instances=40)
    jobs = [(receiver.as_caller(calling), paths) for calling in ("NORTHGATE", "NORTHGATE2", "SOUTHMEAD", "SOUTHMEAD")]
    assert all(set(_statuses(sent)) == {0} for sent in send_at_once(jobs))
    for trust in ("northgate", "southmead"):
        stored = _stored(admin_store, trust, synthetic_uid("shared"))
        assert len(stored) == 40
        assert all(len(digests) == 1 for digests in stored.values())


def test_a_common_sender_is_content(receiver: ReceiverProcess, admin_store: S3ObjectStore, tmp_path: Path) -> None:
    paths = _series(tmp_path, "dcmtk", instances=20)
    done = storescu(receiver.peer, paths)
    assert done.returncode == 0, done.stderr
    assert len(_stored(admin_store, "northgate", synthetic_uid("dcmtk"))) == 20
    for path in paths:
        assert admin_store.stat(BUCKET, _expected_key("northgate", path.read_bytes())[0]) is not None
    refused = storescu(Peer(receiver.peer.port, calling="NOBODY"), paths[:1])
    assert refused.returncode != 0
    if STORESCU:
        assert "Calling AE Title Not Recognized" in refused.stderr + refused.stdout


def test_all_that_real_routers_send_is_negotiated(receiver: ReceiverProcess) -> None:
    classes = [
        CT,
        "1.2.840.10008.5.1.4.1.1.77.1.6",
        "1.2.840.10008.5.1.4.1.1.481.3",
        "1.2.840.10008.5.1.4.1.1.66.4",
        *map(str, RETIRED_STORAGE_SOP_CLASSES),
    ]
    wanted = [(sop_class, EXPLICIT) for sop_class in classes] + [(CT, str(syntax)) for syntax in TRANSFER_SYNTAXES]
    with association(receiver.peer, wanted) as assoc:
        accepted = {(str(cx.abstract_syntax), str(cx.transfer_syntax[0])) for cx in assoc.accepted_contexts}
    assert accepted == set(wanted)
    with association(receiver.peer, [(CT, EXPLICIT), ("1.2.3.4.5", EXPLICIT), (CT, "1.2.840.10008.1.2.4.94")]) as assoc:
        assert [str(cx.abstract_syntax) for cx in assoc.accepted_contexts] == [CT]
        assert sorted(cx.result for cx in assoc.rejected_contexts) == [3, 4]  # abstract syntax, transfer syntax not supported


def test_a_retired_class_is_stored(receiver: ReceiverProcess, tmp_path: Path) -> None:
    instance, data_set = _one("retired")
    retired = b"1.2.840.10008.5.1.4.1.1.6\0"
    # The same length as CT's UID, so that nothing else moves.
    assert len(retired) == len(CT.encode()) + 1
    data_set = data_set.replace(CT.encode() + b"\0", retired, 1)
    path = _part10(tmp_path, "a", data_set, sop_class="1.2.840.10008.5.1.4.1.1.6", instance=instance.sop_instance_uid)
    assert _statuses(send(receiver.peer, [path])) == [0]


def test_what_cannot_be_understood_is_said_and_harms_nobody_else(
    receiver: ReceiverProcess, admin_store: S3ObjectStore, topic: Topic, tmp_path: Path
) -> None:
    instance, data_set = _one("refused")
    uid, study = instance.sop_instance_uid, instance.study_instance_uid

    def without(tag: bytes, value: str) -> bytes:
        start = data_set.index(tag)
        return data_set[:start] + data_set[start + 8 + len(value) + len(value) % 2 :]

    cases = [
        ("rubbish", b"\x17rubbish" * 400, uid, 0xC000, "agreed transfer syntax"),
        ("zeros", bytes(5000), uid, 0xC000, "agreed transfer syntax"),
        ("nothing", b"", uid, 0xC000, "No data set"),
        ("truncated-pixels", data_set[:-1], uid, 0xC000, "cut off"),
        ("truncated-header", data_set[:100], uid, 0xC000, "cut off"),
        ("implicit-as-explicit", data_set.replace(b"UI", b"\0\0"), uid, 0xC000, ""),
        ("no-study", without(b"\x20\x00\x0d\x00UI", study), uid, 0xC000, "Study Instance UID"),
        ("no-series", without(b"\x20\x00\x0e\x00UI", instance.series_instance_uid), uid, 0xC000, "Series Instance UID"),
        ("no-instance", without(b"\x08\x00\x18\x00UI", uid), uid, 0xC000, "SOP Instance UID"),
        ("path-as-study", data_set.replace(study.encode(), b"../../.." + b"/" * (len(study) - 8)), uid, 0xC000, "Study Instance UID"),
        ("other-instance", data_set, "1.2.3.4", 0xA900, "SOP Instance UID"),
        ("good", data_set, uid, 0x0000, ""),
    ]
    paths = [_part10(tmp_path, name, content, instance=named) for name, content, named, _, _ in cases]
    sent = send(receiver.peer, paths)
    assert [(one.path.name, one.status) for one in sent] == [(name, status) for name, _, _, status, _ in cases]
    for one, (name, _, _, _, comment) in zip(sent, cases, strict=True):
        assert comment in one.comment, name
        assert one.status == 0 or says_what_to_do(one.comment), one.comment
    assert list(_stored(admin_store, "northgate", study)) == [uid]
    assert [event.data.sop_instance_uid for event in topic.events()] == [uid]
    reasons = {line["reason"] for line in receiver.lines if line["event"] == "instance refused"}
    assert {"not-the-transfer-syntax", "empty", "truncated", "no-usable-uid", "other-sop-instance"} <= reasons


def test_another_class_than_the_requests_is_refused(receiver: ReceiverProcess, tmp_path: Path) -> None:
    instance, data_set = _one("class")
    path = _part10(tmp_path, "a", data_set, sop_class="1.2.840.10008.5.1.4.1.1.4", instance=instance.sop_instance_uid)
    (sent,) = send(receiver.peer, [path])
    assert (sent.status, sent.comment) == (0xA900, "SOP Class UID is not that of the request: repair, send again")


def test_a_known_bad_file_of_each_kind_that_comes_with_pydicom(receiver: ReceiverProcess, tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file  # noqa: PLC0415 - only here

    for name in ("MR_truncated.dcm", "rtplan_truncated.dcm"):
        content = Path(str(get_testdata_file(name))).read_bytes()
        path = tmp_path / name
        path.write_bytes(content)
        (sent,) = send(receiver.peer, [path])
        assert sent.status == 0xC000
        assert sent.comment == "Data set is cut off: fetch it whole and send again"


def test_no_log_line_says_who_it_was(receiver: ReceiverProcess, tmp_path: Path) -> None:
    paths = [*_series(tmp_path, "logged"), _part10(tmp_path / "x", "bad", b"\x17SYNTHETIC^RECEIVER" * 50, instance="1.2.3.4.5.6.7")]
    send(receiver.peer, paths)
    text = str(receiver.lines)
    for identifier in ("SYNTHETIC", synthetic_uid("logged"), "1.2.3.4.5.6.7", "R-1", synthetic_uid("logged", 1)):
        assert identifier not in text


def test_large_instances_go_through_a_file_that_nobody_sees(
    start_receiver: StartReceiver, admin_store: S3ObjectStore, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    bounds = {"HUB_RECEIVER_MEMORY_BYTES": "100000", "HUB_RECEIVER_MAXIMUM_BYTES": "3000000", "HUB_DATA_FOLDER": str(folder)}
    with start_receiver(**bounds) as receiver:
        paths = _series(tmp_path / "large", "large", instances=2, pixels=1024)
        small = _series(tmp_path / "small", "small", instances=1)
        too_large = _series(tmp_path / "too-large", "too-large", instances=1, pixels=1300)
        sent = send(receiver.peer, [*paths, *too_large, *small])
        assert _statuses(sent) == [0, 0, 0xC000, 0]
        assert "Too large" in sent[2].comment
        assert says_what_to_do(sent[2].comment)
        for path in (*paths, *small):
            key, stored = _expected_key("northgate", path.read_bytes())
            assert admin_store.get(BUCKET, key) == stored
        assert list((folder / "receiver").iterdir()) == []
        assert (folder / "receiver").stat().st_mode & 0o077 == 0
        opened = [str(link.readlink()) for link in Path(f"/proc/{receiver.process.pid}/fd").iterdir()]
        assert not [path for path in opened if str(folder) in path], "an answered instance's file is closed"


def test_the_bound_of_associations_asks_to_come_again(start_receiver: StartReceiver) -> None:
    with start_receiver(HUB_RECEIVER_ASSOCIATIONS="2", HUB_RECEIVER_IDLE_SECONDS="1") as receiver:
        with association(receiver.peer, [(CT, EXPLICIT)]), association(receiver.peer, [(CT, EXPLICIT)]):
            with pytest.raises(Rejected) as rejected, association(receiver.peer, [(CT, EXPLICIT)]):
                pass
            assert rejected.value.code == (2, 3, 2)
            time.sleep(2)  # the two say nothing: they are aborted
        assert echo(receiver.peer) == 0


def test_connections_that_say_nothing_do_not_shut_others_out(receiver: ReceiverProcess) -> None:
    silent = [socket.create_connection(("127.0.0.1", receiver.peer.port)) for _ in range(20)]
    silent[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    silent[1].sendall(b"\x01\x00\x00\x00\x00\x10rubbish")
    try:
        assert echo(receiver.peer) == 0
    finally:
        for connection in silent:
            connection.close()


def test_several_processes_share_one_port(start_receiver: StartReceiver, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = _series(tmp_path, "workers", instances=5)
    with start_receiver("--workers", "2", HUB_RECEIVER_PORT=str(port)) as receiver:
        receiver.wait_until(lambda: receiver.events.count("listening") == 2)
        sent = send_at_once([(receiver.peer, paths)] * 6)
        assert all(_statuses(one) == [0] * 5 for one in sent)
