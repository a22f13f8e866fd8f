"""A spool as a process, and a hub that answers what a test wants."""

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hub_dicom import file_meta
from hub_ingest.receiver_scp import supported_contexts
from hub_ingest.spool_folder import SpoolFolder
from pynetdicom import AE, evt
from support.receiver_process import ReceiverProcess

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
TRUST = "trusts:\n  - {name: northgate, ae_titles: [CT1, CT2], addresses: [127.0.0.1/32], assigning_authority: RNG}\n"


@contextmanager
def start_spool(folder: Path, hub_port: int, **settings: object) -> Iterator[ReceiverProcess]:
    """`hub-receiver --spool` on `folder/spool`, without broker and store."""
    trusts = folder / "spool-trusts.yaml"
    trusts.write_text(TRUST)
    environment = {
        "HUB_RECEIVER_PORT": "0",
        "HUB_RECEIVER_AE_TITLE": "SPOOL",
        "HUB_TRUSTS_FILE": str(trusts),
        "HUB_SPOOL_FORWARD_TO": f"127.0.0.1:{hub_port}",
        "HUB_SPOOL_CALLING_AE": "NORTHGATE",
        "HUB_SPOOL_RETRY_SECONDS": "1",
        "HUB_LOG_STRICT": "true",
        "HUB_DRAIN_SECONDS": "5",
        **{f"HUB_{name.upper()}": str(value) for name, value in settings.items()},
    }
    process = ReceiverProcess(environment, "--spool", str(folder / "spool"))
    try:
        process.wait_listening()
        yield process
    finally:
        process.stop()
    assert not [line for line in process.lines if "unstructured" in line], "everything on stderr is a log line"


def names(folder: Path, state: str) -> list[str]:
    """What is in a folder of the spool."""
    return sorted(path.name for path in (folder / "spool" / state).iterdir())


def fill(folder: Path, *instances: bytes, study: str = "1.2.3") -> None:
    """What a spool would find that was stopped before it could forward."""
    spool = SpoolFolder(folder / "spool", maximum_bytes=2**30)
    for one in instances:
        spool.add(study, [one], len(one))
    spool.close()


def tiny(number: int, *, sop_class: str = CT, syntax: str = EXPLICIT, study: str = "1.2.3") -> bytes:
    """A Part 10 object of nothing but UIDs."""
    uids = ((0x0008, 0x0016, sop_class), (0x0008, 0x0018, f"1.2.3.4.{number}"), (0x0020, 0x000D, study), (0x0020, 0x000E, "1.2.3.4"))
    values = [(group, element, uid.encode() + b"\0" * (len(uid) % 2)) for group, element, uid in uids]
    data_set = b"".join(struct.pack("<HH2sH", group, element, b"UI", len(value)) + value for group, element, value in values)
    return file_meta(sop_class, f"1.2.3.4.{number}", syntax) + data_set


class Hub:
    """A real SCP that keeps what it is sent, in order, and answers by the test's rule."""

    def __init__(self, answer: Callable[[str], int], contexts: list[Any] | None = None, port: int = 0) -> None:
        self.received: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.associations: list[int] = []
        self._answer = answer
        self._lock = threading.Lock()
        entity = AE("REGIONALHUB")
        entity.maximum_pdu_size = 131_072
        entity.maximum_associations = 50
        self._server: Any = entity.start_server(
            ("127.0.0.1", port),
            block=False,
            contexts=contexts or supported_contexts(),
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_REQUESTED, self._request)],
        )
        self.port = int(self._server.server_address[1])

    def _request(self, event: Any) -> None:
        self.associations.append(len(event.assoc.requestor.primitive.presentation_context_definition_list))

    def _store(self, event: Any) -> int:
        instance = str(event.request.AffectedSOPInstanceUID)
        status = self._answer(instance)
        with self._lock:
            self.asked.append(instance)
            if status == 0:
                self.received.append((instance, str(event.context.transfer_syntax)))
        return status

    def close(self) -> None:
        self._server.shutdown()


@contextmanager
def hub(answer: Callable[[str], int] = lambda _: 0, contexts: list[Any] | None = None, port: int = 0) -> Iterator[Hub]:
    """A `Hub` until the end of the block."""
    one = Hub(answer, contexts, port)
    try:
        yield one
    finally:
        one.close()
