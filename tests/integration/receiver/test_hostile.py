"""Broken off anywhere, with and without TLS: nothing of it is stored, and the next sender is served within five seconds."""

import itertools
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

import pytest
from hub_dicom import read_file_meta
from hub_dicom.synthetic import SyntheticInstance, SyntheticPatient, synthetic_series
from hub_objectstore import S3ObjectStore
from support.certificates import Authority
from support.receiver_process import ReceiverProcess, StartReceiver, Topic
from support.wire import abort, associate_request, message, pdu, pdv, read_pdu, read_status, store_request

PATIENT = SyntheticPatient("SYNTHETIC^HOSTILE", "H-1")
LONGEST = 16_384


@dataclass
class Door:
    """One port of a receiver, and how a trust opens a connection there."""

    receiver: ReceiverProcess
    trust: str
    connect: Callable[[], socket.socket]

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        with closing(self.connect()) as connection:
            connection.settimeout(20)
            yield connection

    @contextmanager
    def association(self) -> Iterator[socket.socket]:
        with self.connection() as connection:
            connection.sendall(self.request)
            assert read_pdu(connection)[0] == 2
            yield connection

    @property
    def request(self) -> bytes:
        return associate_request(calling=self.trust.upper())

    def next_one_is_served(self, instance: SyntheticInstance) -> None:
        """A new sender, from its connection to its 0x0000."""
        start = time.monotonic()
        with self.association() as connection:
            connection.sendall(_store(instance, LONGEST))
            assert read_status(connection) == 0
        assert time.monotonic() - start < 5


@pytest.fixture(scope="module", params=["plain", "tls"])
def door(request: pytest.FixtureRequest, start_receiver: StartReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    if request.param == "plain":
        with start_receiver() as receiver:
            yield Door(receiver, "northgate", lambda: socket.create_connection(("127.0.0.1", receiver.peer.port)))
        return
    authority = Authority(tmp_path_factory.mktemp("hostile"))
    server, own = authority.issue("hub.example", file="server"), authority.issue("router.easton.example")
    context = ssl.create_default_context(cafile=str(authority.file))
    context.load_cert_chain(own.certificate, own.key)
    tls = {"CERTIFICATE": server.certificate, "KEY": server.key, "CA": authority.file}
    with start_receiver(
        HUB_RECEIVER_TLS_PORT="0", **{f"HUB_RECEIVER_TLS_{what}_FILE": str(path) for what, path in tls.items()}
    ) as receiver:
        port = receiver.line("listening for TLS")["port"]

        def connect() -> socket.socket:
            return context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="hub.example")

        yield Door(receiver, "easton", connect)


def _instances(study: str) -> tuple[SyntheticInstance, SyntheticInstance]:
    """What is broken off, and what the next one sends."""
    (hostile,) = synthetic_series(PATIENT, study=study, instances=1, pixels=256)
    (good,) = synthetic_series(PATIENT, study=f"{study}-good", instances=1, pixels=16)
    return hostile, good


def _store(instance: SyntheticInstance, maximum: int) -> bytes:
    data_set = instance.content[read_file_meta(instance.content).data_set_offset :]
    return message(store_request(instance.sop_instance_uid), data_set, maximum=maximum)


def _points(stream: bytes) -> list[int]:
    """Places to break off: at, before and after the borders of PDUs, in their headers, and just before the end."""
    borders, place = [], 0
    while place < len(stream):
        borders.append(place)
        place += 6 + int.from_bytes(stream[place + 2 : place + 6], "big")
    chosen = [*borders[:3], borders[len(borders) // 2], borders[-1]]
    return sorted({max(0, border + by) for border, by in itertools.product(chosen, (-1, 0, 1, 5, 7, 12))} | {len(stream) - 1})


def _close(connection: socket.socket) -> None:
    connection.close()


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _abort(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.sendall(abort(0, 0))


def _garbage(connection: socket.socket) -> None:
    # Below TLS, where there is TLS: no record of the session.
    with suppress(OSError):
        os.write(connection.fileno(), b"\x17\x03\x03\x00\x20" + bytes(range(32)) + b"\xff" * 40)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


ENDS = (_close, _reset, _abort, _garbage, _shut)


def test_broken_off_anywhere_it_stores_nothing_and_the_next_is_served(door: Door, admin_store: S3ObjectStore, topic: Topic) -> None:
    hostile, good = _instances(f"hostile-{door.trust}")
    stream = _store(hostile, LONGEST)
    points = _points(stream)
    for number, point in enumerate(points):
        end = ENDS[number % len(ENDS)]
        # Garbage of the right length could end the instance: what is in the pixels nobody can know.
        if end is _garbage and point > len(stream) - 200:
            end = _reset
        with door.association() as connection:
            connection.sendall(stream[:point])
            end(connection)
        door.next_one_is_served(good)
    request = door.request
    for number, point in enumerate((0, 1, 5, 6, 50, len(request) - 1, len(request))):
        with door.connection() as connection:
            connection.sendall(request[:point])
            ENDS[number % len(ENDS)](connection)
        door.next_one_is_served(good)
    assert list(admin_store.list("identifiable", f"{door.trust}/{hostile.study_instance_uid}/")) == []
    events = topic.events()
    assert {event.data.sop_instance_uid for event in events} == {good.sop_instance_uid}
    assert len(events) == len(points) + 7
    (stored,) = admin_store.list("identifiable", f"{door.trust}/{good.study_instance_uid}/")
    meta = read_file_meta(good.content)
    assert admin_store.get("identifiable", stored.key).endswith(good.content[meta.data_set_offset :])
    door.receiver.wait_until(lambda: door.receiver.metric("hub_receiver_associations_open") == 0)


def test_what_breaks_the_rules_is_aborted_and_the_next_is_served(door: Door, admin_store: S3ObjectStore) -> None:
    hostile, good = _instances(f"rules-{door.trust}")
    begun = _store(hostile, LONGEST)[: 3 * LONGEST]
    place = 0
    while place + 6 + int.from_bytes(begun[place + 2 : place + 6], "big") <= len(begun):
        place += 6 + int.from_bytes(begun[place + 2 : place + 6], "big")
    begun = begun[:place]
    second_command = pdu(4, pdv(store_request("1.2.3"), 3))
    for said in (
        struct.pack(">BBL", 4, 0, 0xFFFFFFFF),
        pdu(4, struct.pack(">LBB", 0xFFFFFFFF, 1, 0)),
        pdu(4, pdv(b"x", 0, context_id=9)),
        pdu(4, pdv(b"x", 4)),
        second_command,
        pdu(1, bytes(68)),
        b"\xff" * 100,
    ):
        for before in (begun,) if said is second_command else (b"", begun):
            with door.association() as connection:
                connection.sendall(before + said)
                assert read_pdu(connection)[0] == 7
            door.next_one_is_served(good)
    assert list(admin_store.list("identifiable", f"{door.trust}/{hostile.study_instance_uid}/")) == []
