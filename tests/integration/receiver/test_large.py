"""Instances too large for memory, and lengths that nothing follows."""

import socket
import struct
import threading
from pathlib import Path

from hub_dicom import parse_instance_key
from hub_dicom.synthetic import synthetic_uid
from hub_objectstore import S3ObjectStore
from support.large_instance import FRAME, MULTI_FRAME, LargeInstance
from support.large_passes import LIMIT, large_instance_passes
from support.memory import MIB, resident
from support.receiver_process import ReceiverProcess, StartReceiver, Topic
from support.senders import echo
from support.wire import CT, EXPLICIT, abort, message, pdu, pdv, raw_association, read_pdu, read_status, store_request


def test_a_large_instance_passes_in_bounded_memory(
    start_receiver: StartReceiver, admin_store: S3ObjectStore, topic: Topic, tmp_path: Path
) -> None:
    with start_receiver(HUB_DATA_FOLDER=str(tmp_path)) as receiver:
        large = large_instance_passes(receiver, admin_store, synthetic_uid("large-instance"), 300, seconds=60)
        assert list((tmp_path / "receiver").iterdir()) == []
    (event,) = topic.events()
    assert (event.data.sop_instance_uid, event.data.object.size) == (large.instance, large.stored()[1])


def test_several_large_instances_at_once_share_the_bound(start_receiver: StartReceiver, admin_store: S3ObjectStore) -> None:
    study = synthetic_uid("several-large")
    several = [LargeInstance(study, f"{study}.1.{number}", 66 * MIB // FRAME) for number in range(4)]
    answers: list[int] = []

    def one(receiver: ReceiverProcess, large: LargeInstance) -> None:
        with raw_association(receiver.peer.port, contexts=[(MULTI_FRAME, EXPLICIT)]) as connection:
            connection.settimeout(60)
            large.send(connection)
            answers.append(read_status(connection))

    with start_receiver() as receiver, resident(receiver.process.pid) as memory:
        threads = [threading.Thread(target=one, args=(receiver, large)) for large in several]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(f"four of 66 MiB at once: {memory}")
    assert answers == [0] * 4
    assert memory.peak < LIMIT + 64 * MIB, f"each begins in HUB_RECEIVER_ALL_MEMORY_BYTES: {memory}"
    stored = {parse_instance_key(info.key).sha256 for info in admin_store.list("identifiable", f"northgate/{study}/")}
    assert stored == {large.stored()[0] for large in several}


def test_a_large_instance_that_breaks_off_leaves_nothing(
    receiver: ReceiverProcess, admin_store: S3ObjectStore, topic: Topic, tmp_path: Path
) -> None:
    study = synthetic_uid("large-broken-off")
    large = LargeInstance(study, f"{study}.1.1", 100 * MIB // FRAME)
    with raw_association(receiver.peer.port, contexts=[(MULTI_FRAME, EXPLICIT)]) as connection:
        large.send(connection, most=90 * MIB)
    assert echo(receiver.peer) == 0
    receiver.wait_until(lambda: receiver.metric('hub_receiver_associations_ended_total{reason="connection-lost"}') >= 1)
    assert list(admin_store.list("identifiable", f"northgate/{study}/")) == []
    assert topic.events() == []


FOUR_GIB = 0xFFFFFFFF
CLAIMS = {
    "a PDU": struct.pack(">BBL", 4, 0, FOUR_GIB),
    "an unknown PDU": struct.pack(">BBL", 9, 0, FOUR_GIB),
    "a PDV": pdu(4, struct.pack(">LBB", FOUR_GIB, 1, 3) + bytes(1000)),
    "a command element": pdu(4, pdv(struct.pack("<HHL", 0, 2, FOUR_GIB) + bytes(1000), 3)),
}
ELEMENTS = {
    "a short VR's element": b"\x08\x00\x16\x00UI\xff\xff1.2",
    "pixels": b"\xe0\x7f\x10\x00OW\0\0" + (FOUR_GIB - 1).to_bytes(4, "little") + bytes(1000),
    "a sequence": b"\x08\x00\x40\x11SQ\0\0" + (FOUR_GIB - 1).to_bytes(4, "little") + bytes(1000),
    "an item": b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0" + (FOUR_GIB - 1).to_bytes(4, "little") + bytes(1000),
}


def test_a_claim_of_four_gibibytes_allocates_nothing(start_receiver: StartReceiver) -> None:
    with start_receiver() as receiver:
        port = receiver.peer.port
        # A first round, so that what is loaded once is there.
        _claim(port)
        with resident(receiver.process.pid) as memory:
            _claim(port)
        assert memory.peak - memory.before < 2 * MIB, str(memory)
        assert echo(receiver.peer) == 0


def _claim(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
        stranger.sendall(struct.pack(">BBL", 1, 0, FOUR_GIB))
        assert stranger.recv(100) in {b"", abort(2, 0)}
    for what, said in CLAIMS.items():
        with raw_association(port) as connection:
            connection.sendall(said)
            assert read_pdu(connection)[0] == 7, what
    with raw_association(port, contexts=[(CT, EXPLICIT)]) as connection:
        for number, (what, data_set) in enumerate(ELEMENTS.items(), 1):
            connection.sendall(message(store_request(f"1.2.3.{number}", message_id=number), data_set))
            assert read_status(connection) == 0xC000, what
