"""Thirteen trusts, two hundred associations, several processes: many at once, each its own, in bounded memory."""

import os
import signal
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hub_dicom import parse_instance_key
from hub_dicom.synthetic import SyntheticPatient, synthetic_series, synthetic_uid
from hub_objectstore import S3ObjectStore
from support.dicom_files import write_series
from support.memory import MIB, resident
from support.receiver_process import ReceiverProcess, StartReceiver, Topic
from support.senders import Rejected, association, echo, send_at_once, storescu
from support.wire import CT, EXPLICIT, pdu, pdv, raw_association, read_status, store_request

PATIENT = SyntheticPatient("SYNTHETIC^MANY", "M-1")
TRUSTS = [f"trust-{letter}" for letter in "abcdefghijklm"]
ASSOCIATIONS = 200
BOUND = (150 + 64) * MIB + ASSOCIATIONS * MIB // 2
"""README.md, "Memory": what one instance of any size may have, all that waits in memory, half a MiB for each association."""


@pytest.fixture(scope="module")
def thirteen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trusts file."""
    path = tmp_path_factory.mktemp("thirteen") / "trusts.yaml"
    lines = [
        f"  - {{name: {name}, ae_titles: [{_title(name)}], addresses: [127.0.0.1/32], assigning_authority: {name.upper()}}}"
        for name in TRUSTS
    ]
    path.write_text("trusts:\n" + "\n".join(lines) + "\n")
    return str(path)


def _title(trust: str) -> str:
    return trust.upper().replace("-", "")


def test_thirteen_trusts_at_once_each_has_its_own(
    start_receiver: StartReceiver, thirteen: str, admin_store: S3ObjectStore, topic: Topic, tmp_path: Path
) -> None:
    # All send the same study: whose it is says nothing but the association.
    paths = write_series(tmp_path, synthetic_series(PATIENT, study="thirteen", instances=8, pixels=256))
    with start_receiver(HUB_TRUSTS_FILE=thirteen) as receiver:
        sent = send_at_once([(receiver.as_caller(_title(name)), paths) for name in TRUSTS])
        assert {one.status for theirs in sent for one in theirs} == {0}
        for name in TRUSTS:
            assert receiver.metric(f'hub_receiver_instances_total{{result="stored",trust="{name}"}}') == len(paths)
    _each_once(admin_store, topic, "thirteen", len(paths))


def _each_once(store: S3ObjectStore, topic: Topic, study: str, instances: int) -> None:
    """Each trust's instances are stored once and announced under its name."""
    expected = {synthetic_uid(study, 1, number + 1) for number in range(instances)}
    for name in TRUSTS:
        stored = [parse_instance_key(info.key) for info in store.list("identifiable", f"{name}/{synthetic_uid(study)}/")]
        assert len(stored) == instances
        assert {key.sop_instance_uid for key in stored} == expected
    said: Counter[tuple[str, str]] = Counter((event.data.trust, event.data.sop_instance_uid) for event in topic.events())
    assert said == {(name, uid): 1 for name in TRUSTS for uid in expected}


def test_two_hundred_associations_have_a_bound_of_memory_and_the_next_comes_again(
    start_receiver: StartReceiver, thirteen: str, tmp_path: Path
) -> None:
    (small,) = write_series(tmp_path, synthetic_series(PATIENT, study="two-hundred", instances=1))
    with start_receiver(HUB_TRUSTS_FILE=thirteen) as receiver, ExitStack() as opened:
        with resident(receiver.process.pid) as memory:
            connections = [_begun(opened, receiver, number) for number in range(ASSOCIATIONS)]
            _settled(receiver, ASSOCIATIONS)
            with pytest.raises(Rejected) as rejected, association(receiver.as_caller("TRUSTA"), [(CT, EXPLICIT)]):
                pass
            assert rejected.value.code == (2, 3, 2)
            assert receiver.metric('hub_receiver_associations_refused_total{reason="limit"}') == 1
            # Those inside are served on: one that was in the middle ends its instance, which is none.
            connections[-1].sendall(pdu(4, pdv(b"", 2)))
            assert read_status(connections[-1]) == 0xC000
        print(f"{ASSOCIATIONS} associations: {memory}; allowed {BOUND / MIB:.0f} MiB")
        assert memory.peak < BOUND, str(memory)
        # A place is free again as soon as one goes.
        connections[0].close()
        _settled(receiver, ASSOCIATIONS - 1)
        assert [one.status for (one,) in send_at_once([(receiver.as_caller("TRUSTM"), [small])])] == [0]


def _begun(opened: ExitStack, receiver: ReceiverProcess, number: int) -> socket.socket:
    """An association in the middle of an instance: of some 1 MiB has come, more than all may hold in memory; of some 9 MiB, more than one may."""
    connection = opened.enter_context(raw_association(receiver.peer.port, calling=_title(TRUSTS[number % 13])))
    connection.sendall(pdu(4, pdv(store_request(f"1.2.3.{number}"), 3)))
    for _ in range(9 * MIB // 100_000 if number % 20 == 0 else MIB // 100_000):
        connection.sendall(pdu(4, pdv(bytes(100_000), 0)))
    return connection


def _settled(receiver: ReceiverProcess, associations: int) -> None:
    receiver.wait_until(lambda: receiver.metric("hub_receiver_associations_open") == associations)


def test_several_processes_share_one_port_and_outlive_one_another(
    start_receiver: StartReceiver, thirteen: str, admin_store: S3ObjectStore, topic: Topic, tmp_path: Path
) -> None:
    paths = write_series(tmp_path, synthetic_series(PATIENT, study="processes", instances=4))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with start_receiver("--workers", "2", HUB_RECEIVER_PORT=str(port), HUB_TRUSTS_FILE=thirteen) as receiver:
        receiver.wait_until(lambda: receiver.events.count("listening") == 2)
        codes: list[int] = []
        threads = [
            threading.Thread(target=lambda name=name: codes.append(storescu(receiver.as_caller(_title(name)), paths).returncode))
            for name in TRUSTS
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert codes == [0] * len(TRUSTS)
        _each_once(admin_store, topic, "processes", len(paths))
        # The kernel spreads connections: both have had some.
        assert all(count > 0 for count in _associations(receiver)), _associations(receiver)
        # Who is killed takes only its own associations along, and comes back.
        children = _children(receiver.process.pid)
        os.kill(children[0], signal.SIGKILL)
        start = time.monotonic()
        while time.monotonic() - start < 5:
            with suppress(ConnectionError):
                assert echo(receiver.as_caller("TRUSTB")) == 0
                break
        assert time.monotonic() - start < 5
        receiver.wait_until(lambda: receiver.events.count("listening") == 3)
        assert {one.status for theirs in send_at_once([(receiver.as_caller("TRUSTC"), paths)] * 6) for one in theirs} == {0}


def _associations(receiver: ReceiverProcess) -> list[float]:
    ports = [line["port"] for line in receiver.lines if line["event"] == "started"]
    texts = [httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text for port in ports]
    return [
        sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("hub_receiver_associations_total"))
        for text in texts
    ]


def _children(pid: int) -> list[int]:
    found: Any = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def test_a_burst_of_connections_that_reset_takes_no_place(start_receiver: StartReceiver, thirteen: str) -> None:
    with start_receiver(HUB_TRUSTS_FILE=thirteen, HUB_RECEIVER_ASSOCIATIONS="20") as receiver:
        for number in range(60):
            with raw_association(receiver.peer.port, calling=_title(TRUSTS[number % 13])) as connection:
                connection.sendall(pdu(4, pdv(store_request(f"1.2.4.{number}"), 3)) + pdu(4, pdv(bytes(1000), 0)))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        start = time.monotonic()
        assert echo(receiver.as_caller("TRUSTA")) == 0
        assert time.monotonic() - start < 5
        _settled(receiver, 0)
