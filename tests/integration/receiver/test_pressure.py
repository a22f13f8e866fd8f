"""What is known to be away is said at once, before a data set is kept, and by itself no longer said when it is back."""

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hub_dicom.synthetic import SyntheticPatient, synthetic_series, synthetic_uid
from hub_ingest.arrival import free_bytes
from hub_objectstore import S3ObjectStore
from hub_parts import Parts
from support.dicom_files import write_series
from support.large_instance import FRAME, MULTI_FRAME, LargeInstance
from support.memory import MIB
from support.receiver_process import ReceiverProcess, StartReceiver
from support.senders import Sent, echo, send
from support.wire import EXPLICIT, raw_association, read_status

PATIENT = SyntheticPatient("SYNTHETIC^PRESSURE", "P-1")


def _series(folder: Path, study: str, instances: int = 2) -> list[Path]:
    return write_series(folder, synthetic_series(PATIENT, study=study, instances=instances, pixels=64))


def _refused(sent: list[Sent], comment: str) -> None:
    assert {(one.status, one.comment) for one in sent} == {(0xA700, comment)}
    assert max(one.seconds for one in sent) < 2


@pytest.mark.parametrize("part", ["store", "broker"])
def test_what_readiness_found_out_nobody_waits_for(
    receiver: ReceiverProcess, parts: Parts, admin_store: S3ObjectStore, part: str, tmp_path: Path
) -> None:
    program = next(name for name in parts.programs if (name == "kafka") == (part == "broker"))
    study = synthetic_uid(f"known-{part}")
    paths = _series(tmp_path, f"known-{part}")
    large = LargeInstance(study, f"{study}.1.1", 100 * MIB // FRAME)
    receiver.wait_until(receiver.ready)
    refused = receiver.metric("hub_receiver_refusals_total")
    parts.supervisor.signal(program, signal.SIGSTOP)
    try:
        receiver.wait_until(lambda: list(receiver.unready()) == [part])
        _refused(send(receiver.peer, paths), f"{'Object store' if part == 'store' else 'Message broker'} unavailable: send again later")
        with raw_association(receiver.peer.port, contexts=[(MULTI_FRAME, EXPLICIT)]) as connection:
            large.send(connection)
            assert read_status(connection) == 0xA700
        with raw_association(receiver.peer.port, contexts=[(MULTI_FRAME, EXPLICIT)]) as connection:
            large.send(connection, most=90 * MIB)
            opened = [str(link.readlink()) for link in Path(f"/proc/{receiver.process.pid}/fd").iterdir()]
            assert not [path for path in opened if "/receiver/#" in path], "it is taken off the line and not kept"
        assert echo(receiver.peer) == 0
    finally:
        parts.supervisor.signal(program, signal.SIGCONT)
    assert receiver.metric("hub_receiver_refusals_total") == refused + 3
    receiver.wait_until(receiver.ready, seconds=40)
    assert list(admin_store.list("identifiable", f"northgate/{study}/")) == []
    assert [one.status for one in send(receiver.peer, paths)] == [0, 0]


def test_a_disk_that_is_nearly_full_refuses_everything_until_it_is_not(start_receiver: StartReceiver, tmp_path: Path) -> None:
    comment = "No space to receive the data set: send again later"
    paths = _series(tmp_path, "disk")
    # A file system that nobody else fills meanwhile.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        keep_free = free_bytes(Path(folder)) - 8 * MIB
        with start_receiver(HUB_DATA_FOLDER=folder, HUB_RECEIVER_FREE_BYTES=str(keep_free)) as receiver:
            receiver.wait_until(receiver.ready)
            assert [one.status for one in send(receiver.peer, paths)] == [0, 0]
            filling = Path(folder) / "filling"
            with filling.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 16 * MIB)
            receiver.wait_until(lambda: list(receiver.unready()) == ["disk"], seconds=5)
            _refused(send(receiver.peer, paths), comment)
            assert {line.get("reason") for line in receiver.lines} >= {"no-space"}
            filling.unlink()
            receiver.wait_until(receiver.ready, seconds=5)
            said = [(line["level"], line["state"]) for line in receiver.lines if line.get("state") == "disk"]
            assert said == [("warning", "disk"), ("info", "disk")]
            assert [one.status for one in send(receiver.peer, paths)] == [0, 0]
    with start_receiver(HUB_RECEIVER_FREE_BYTES=str(2**60)) as receiver:
        _refused(send(receiver.peer, paths), comment)
