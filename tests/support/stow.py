"""STOW-RS as a sender meets it: `hub-stow` as a process, and bodies for it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
from hub_parts import Parts
from pydicom import Dataset
from support.receiver_process import TRUSTS, ReceiverProcess

TOKENS = {
    "northgate": "northgate's own token",
    "southmead": "southmead's own token",
    "elsewhere": "elsewhere's own token",
    "netherby": "netherby's own token",
}
CONTENT_TYPE = 'multipart/related; type="application/dicom"; boundary=b'


class StowProcess(ReceiverProcess):
    """One `hub-stow`, its log and its URL."""

    module = "hub_ingest.stow"

    def wait_listening(self) -> None:
        self.wait_until(lambda: "listening" in self.events or self.process.poll() is not None)
        assert self.process.poll() is None, self.lines
        self.health = f"http://127.0.0.1:{self.line('started')['port']}"
        self.url = f"http://127.0.0.1:{self.line('listening')['port']}/dicom-web"

    def post(
        self, content: bytes | Iterable[bytes], *, study: str | None = None, trust: str = "northgate", timeout: float = 60, **headers: str
    ) -> httpx.Response:
        sent = {"Authorization": f"Bearer {TOKENS[trust]}", "Content-Type": CONTENT_TYPE} | headers
        return httpx.post(
            f"{self.url}/studies" + (f"/{study}" if study else ""), content=content, headers=sent, timeout=httpx.Timeout(timeout)
        )


@contextmanager
def stow_process(parts: Parts, folder: Path, *arguments: str, **settings: str) -> Iterator[StowProcess]:
    """A ready `hub-stow` on these parts; its data folder is `folder`."""
    (folder / "trusts.yaml").write_text(TRUSTS)
    digests = {trust: hashlib.sha256(token.encode()).hexdigest() for trust, token in TOKENS.items()}
    (folder / "tokens.json").write_text(json.dumps(digests))
    environment = parts.environment("stow") | {
        "HUB_STOW_PORT": "0",
        "HUB_STOW_TOKENS_FILE": str(folder / "tokens.json"),
        "HUB_TRUSTS_FILE": str(folder / "trusts.yaml"),
        "HUB_DATA_FOLDER": str(folder),
        "HUB_LOG_STRICT": "true",
        "HUB_DRAIN_SECONDS": "5",
    }
    stow = StowProcess(environment | settings, *arguments)
    try:
        stow.wait_listening()
        yield stow
    finally:
        stow.stop()
    assert not [line for line in stow.lines if "unstructured" in line], "everything on stderr is a log line"


StartStow = Callable[..., AbstractContextManager[StowProcess]]


def multipart(contents: Sequence[bytes]) -> bytes:
    """The body of a store request, with the boundary of CONTENT_TYPE."""
    return b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in contents) + b"--b--\r\n"


def stored(answer: Dataset) -> list[str]:
    """The SOP Instance UIDs that an answer acknowledges."""
    return [item.ReferencedSOPInstanceUID for item in answer.get("ReferencedSOPSequence", [])]


def reasons(answer: Dataset, keyword: str = "FailedSOPSequence") -> list[int]:
    """The failure reasons of an answer, in order."""
    return [item.FailureReason for item in answer.get(keyword, [])]
