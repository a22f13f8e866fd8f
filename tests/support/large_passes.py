"""A large instance through a real receiver, and what it cost."""

import time

from hub_dicom import instance_key
from hub_objectstore import S3ObjectStore
from support.large_instance import FRAME, MULTI_FRAME, LargeInstance
from support.memory import MIB, resident
from support.receiver_process import ReceiverProcess
from support.storage_suite import digest_of
from support.wire import EXPLICIT, raw_association, read_status

LIMIT = 150 * MIB
"""What a receiver may have resident while any one instance passes."""


def large_instance_passes(receiver: ReceiverProcess, store: S3ObjectStore, study: str, mebibytes: int, *, seconds: float) -> LargeInstance:
    """Send an instance of so many MiB; it must be stored byte for byte with the receiver's memory under `LIMIT`."""
    large = LargeInstance(study, f"{study}.1.1", mebibytes * MIB // FRAME)
    with resident(receiver.process.pid) as memory, raw_association(receiver.peer.port, contexts=[(MULTI_FRAME, EXPLICIT)]) as connection:
        connection.settimeout(seconds)
        start = time.monotonic()
        large.send(connection)
        received = time.monotonic() - start
        status = read_status(connection)
        took = time.monotonic() - start
    print(f"{mebibytes} MiB: sent in {received:.1f} s, answered after {took:.1f} s; {memory}")
    assert status == 0x0000, receiver.lines[-5:]
    assert memory.peak < LIMIT, str(memory)
    digest, size = large.stored()
    key = instance_key("northgate", study, f"{study}.1", large.instance, digest)
    info = store.stat("identifiable", key)
    assert info is not None
    assert info.size == size
    with store.open("identifiable", key) as stream:
        assert digest_of(stream) == digest
    store.delete("identifiable", key)
    return large
