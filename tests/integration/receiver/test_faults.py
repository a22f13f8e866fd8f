"""The store, the broker and the receiver fail while somebody sends: no success that is not true, and every answer in time."""

import contextlib
import signal
import threading
import time
from pathlib import Path

import pytest
from hub_dicom import parse_instance_key
from hub_dicom.synthetic import SyntheticPatient, synthetic_series, synthetic_uid
from hub_objectstore import S3ObjectStore
from hub_parts import Parts
from support.dicom_files import write_series
from support.receiver_process import ReceiverProcess, StartReceiver, Topic
from support.senders import Sent, association, echo, says_what_to_do, send

BUCKET = "identifiable"
PATIENT = SyntheticPatient("SYNTHETIC^FAULTS", "F-1")


def _series(folder: Path, study: str, instances: int, pixels: int = 64) -> list[Path]:
    return write_series(folder, synthetic_series(PATIENT, study=study, instances=instances, pixels=pixels))


COMMENTS = {"store": "Object store unavailable", "broker": "Message broker unavailable"}


@pytest.mark.parametrize("part", ["store", "broker"])
def test_a_part_that_hangs_is_out_of_resources_in_time_and_over_when_it_goes_on(
    receiver: ReceiverProcess, parts: Parts, part: str, tmp_path: Path, topic: Topic
) -> None:
    program = next(name for name in parts.programs if (name == "kafka") == (part == "broker"))
    paths = _series(tmp_path, f"hangs-{part}", 2)
    receiver.wait_until(receiver.ready)
    parts.supervisor.signal(program, signal.SIGSTOP)
    try:
        sent = send(receiver.peer, paths[:1])
        assert list(receiver.unready()) == [part]
        # The first one waited; nobody else does.
        early = [*send(receiver.peer, paths), *send(receiver.as_caller("SOUTHMEAD"), paths)]
    finally:
        parts.supervisor.signal(program, signal.SIGCONT)
    assert {one.status for one in [*sent, *early]} == {0xA700}
    assert {one.comment for one in [*sent, *early]} == {f"{COMMENTS[part]}: send again later"}
    assert says_what_to_do(sent[0].comment), sent[0].comment
    assert sent[0].seconds < 16, "a sender waits 30 s at most"
    assert max(one.seconds for one in early) < 2
    receiver.wait_until(receiver.ready, seconds=40)
    assert [one.status for one in send(receiver.peer, paths)] == [0, 0]
    assert {event.data.sop_instance_uid for event in topic.events()} == {synthetic_uid(f"hangs-{part}", 1, number) for number in (1, 2)}


def test_an_association_goes_on_after_a_failure(receiver: ReceiverProcess, parts: Parts, tmp_path: Path) -> None:
    program = next(name for name in parts.programs if name != "kafka")
    paths = _series(tmp_path, "goes-on", 3)
    answers: list[Sent] = []

    def after(one: Sent) -> None:
        answers.append(one)
        parts.supervisor.signal(program, signal.SIGSTOP if len(answers) == 1 else signal.SIGCONT)
        receiver.wait_until(lambda: len(answers) == 1 or receiver.ready())

    try:
        send(receiver.peer, paths, after_each=after)
    finally:
        parts.supervisor.signal(program, signal.SIGCONT)
    assert [one.status for one in answers] == [0, 0xA700, 0]


def test_nobody_listens_where_the_store_was(start_receiver: StartReceiver, tmp_path: Path) -> None:
    with start_receiver(HUB_S3_ENDPOINT="http://127.0.0.1:9") as receiver:
        (sent,) = send(receiver.peer, _series(tmp_path, "no-store", 1))
        assert sent.status == 0xA700
        assert sent.seconds < 8
        assert not receiver.ready()
        assert "store-unavailable" in {line.get("reason") for line in receiver.lines}


def test_nobody_listens_where_the_broker_was(start_receiver: StartReceiver, tmp_path: Path) -> None:
    with start_receiver(HUB_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9") as receiver:
        (sent,) = send(receiver.peer, _series(tmp_path, "no-broker", 1))
        assert sent.status == 0xA700
        assert sent.seconds < 16
        assert not receiver.ready()


def test_credentials_that_are_refused_are_no_success(start_receiver: StartReceiver, tmp_path: Path) -> None:
    with start_receiver(HUB_S3_SECRET_KEY="wrong") as receiver:
        (sent,) = send(receiver.peer, _series(tmp_path, "refused", 1))
        assert sent.status == 0xA700
        assert not receiver.ready()


def test_a_killed_receiver_has_acknowledged_nothing_that_is_not_stored_and_announced(
    start_receiver: StartReceiver, admin_store: S3ObjectStore, topic: Topic, tmp_path: Path
) -> None:
    paths = {calling: _series(tmp_path / calling, f"killed-{calling}", 60, pixels=256) for calling in ("NORTHGATE", "SOUTHMEAD")}
    acknowledged: dict[str, set[str]] = {calling: set() for calling in paths}
    with start_receiver() as receiver:
        many = threading.Event()

        def run(calling: str) -> None:
            def after(one: Sent) -> None:
                if one.status == 0:
                    acknowledged[calling].add(synthetic_uid(f"killed-{calling}", 1, int(one.path.stem) + 1))
                    if len(acknowledged[calling]) >= 15:
                        many.set()

            with contextlib.suppress(ConnectionError):
                send(receiver.as_caller(calling), paths[calling], after_each=after)

        threads = [threading.Thread(target=run, args=(calling,)) for calling in paths]
        for thread in threads:
            thread.start()
        assert many.wait(60)
        receiver.process.kill()
        for thread in threads:
            thread.join()
        assert receiver.process.wait(10) == -signal.SIGKILL
    announced = {event.data.sop_instance_uid for event in topic.events()}
    for calling, uids in acknowledged.items():
        assert 0 < len(uids) < 60, "it was killed in the middle"
        study = synthetic_uid(f"killed-{calling}")
        stored = {parse_instance_key(info.key).sop_instance_uid for info in admin_store.list(BUCKET, f"{calling.lower()}/{study}/")}
        assert uids <= stored
        assert uids <= announced
    with start_receiver() as receiver:
        for calling, files in paths.items():
            assert {one.status for one in send(receiver.as_caller(calling), files)} == {0}
            assert len(list(admin_store.list(BUCKET, f"{calling.lower()}/{synthetic_uid(f'killed-{calling}')}/"))) == 60


def test_at_sigterm_who_sends_may_finish_and_nobody_new_comes_in(start_receiver: StartReceiver, tmp_path: Path) -> None:
    with start_receiver(HUB_DRAIN_SECONDS="15") as receiver:
        paths = _series(tmp_path, "drained", 20)
        answers: list[Sent] = []

        def after(one: Sent) -> None:
            answers.append(one)
            if len(answers) == 3:
                receiver.process.terminate()
                receiver.wait_until(lambda: _refused(receiver))

        send(receiver.peer, paths, after_each=after)
        assert [one.status for one in answers] == [0] * 20
        assert receiver.process.wait(10) == 0
        assert receiver.line("no longer listening")["count"] == 0


def test_at_sigterm_who_only_holds_the_line_is_not_waited_for_long(start_receiver: StartReceiver) -> None:
    with start_receiver(HUB_DRAIN_SECONDS="1") as receiver, association(receiver.peer, [("1.2.840.10008.1.1", "1.2.840.10008.1.2")]):
        start = time.monotonic()
        receiver.process.terminate()
        assert receiver.process.wait(10) == 0
        assert time.monotonic() - start < 6


def test_it_does_not_start_with_trusts_that_it_cannot_use(start_receiver: StartReceiver, tmp_path: Path) -> None:
    trusts = tmp_path / "trusts.yaml"
    trusts.write_text("trusts:\n  - name: quarantine\n    ae_titles: [A]\n    addresses: [127.0.0.1]\n    assigning_authority: X\n")
    with (
        pytest.raises(AssertionError, match=r"trusts\.yaml, line 2: trusts\.0\.name"),
        start_receiver(HUB_TRUSTS_FILE=str(trusts)) as receiver,
    ):
        pass
    with pytest.raises(AssertionError, match="HUB_TRUSTS_FILE"), start_receiver(HUB_TRUSTS_FILE=str(tmp_path / "none.yaml")) as receiver:
        echo(receiver.peer)


def _refused(receiver: ReceiverProcess) -> bool:
    try:
        echo(receiver.peer)
    except ConnectionError:
        return True
    return False
