"""The receiver's disk is full to the last byte: what needs it is refused, what does not is stored, and nothing stays behind.

The data folder is a small file system in memory; mounting it needs root.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_dicom.synthetic import SyntheticPatient, synthetic_series, synthetic_uid
from support.chaos_receiver import receiver_on_own_parts
from support.dicom_files import write_series
from support.large_instance import FRAME, MULTI_FRAME, LargeInstance
from support.memory import MIB
from support.senders import send
from support.wire import EXPLICIT, raw_association, read_status


@pytest.fixture
def small_disk() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.fail("the full-disk test mounts a file system and so needs root: run `sudo make test-chaos`")
    if shutil.which("mount") is None:
        pytest.fail("the full-disk test needs mount: run `apt-get install mount`")
    folder = Path(tempfile.mkdtemp(prefix="hub-full-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m,mode=0700", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(MIB))


def test_a_full_disk_costs_only_what_needs_it(small_disk: Path, tmp_path: Path) -> None:
    paths = write_series(tmp_path, synthetic_series(SyntheticPatient("SYNTHETIC^FULL", "F-2"), study="full", instances=2, pixels=64))
    # No room is kept free, so that writing meets the end of the disk itself.
    with receiver_on_own_parts(small_disk, HUB_RECEIVER_FREE_BYTES="0") as (receiver, store):
        study = synthetic_uid("full-large")
        for number, mebibytes, status in ((1, 20, 0x0000), (2, 60, 0xA700), (3, 20, 0x0000)):
            large = LargeInstance(study, f"{study}.1.{number}", mebibytes * MIB // FRAME)
            with raw_association(receiver.peer.port, contexts=[(MULTI_FRAME, EXPLICIT)]) as connection:
                large.send(connection)
                assert read_status(connection) == status
        filling = small_disk / "filling"
        with pytest.raises(OSError, match="No space"):
            _fill(filling)
        assert [one.status for one in send(receiver.peer, paths)] == [0, 0], "small instances need no disk"
        large = LargeInstance(study, f"{study}.1.4", 20 * MIB // FRAME)
        with raw_association(receiver.peer.port, contexts=[(MULTI_FRAME, EXPLICIT)]) as connection:
            large.send(connection)
            assert read_status(connection) == 0xA700
        filling.unlink()
        with raw_association(receiver.peer.port, contexts=[(MULTI_FRAME, EXPLICIT)]) as connection:
            large.send(connection)
            assert read_status(connection) == 0x0000
        assert list((small_disk / "receiver").iterdir()) == []
        assert len(list(store.list("identifiable", f"northgate/{study}/"))) == 3
        assert {line.get("reason") for line in receiver.lines if line["event"] == "instance refused"} == {"no-space"}
