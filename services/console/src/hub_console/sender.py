"""Send DICOM files by C-STORE: find them, negotiate what they are, send them as they are (PS3.4 B, PS3.8 9.3.2)."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hub_dicom.sending import CONTEXTS_PER_ASSOCIATION, NoAssociation, NotSent, StoreAssociation, store_association
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import MediaStorageDirectoryStorage

_MAGIC_OFFSET, _MAGIC = 128, b"DICM"
_WARNINGS = range(0xB000, 0xC000)  # PS3.7 C.2: stored, with a remark
_MEANINGS = {
    0x0000: "stored",
    0x0122: "SOP class not supported",
    0x0124: "not authorised",
    0xA700: "out of resources: send it again later",
    0xA900: "data set does not match SOP class",
    0xC000: "cannot understand",
}


@dataclass(frozen=True, slots=True)
class DicomFile:
    """One Part 10 file, as its file meta describes it."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    size: int

    @property
    def context(self) -> tuple[str, str]:
        """What must be negotiated to send it without touching it."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is not sent, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file."""

    path: Path
    size: int
    status: int | None
    """The C-STORE status; None when no answer came."""
    text: str

    @property
    def stored(self) -> bool:
        """The receiver has it: success or a warning (PS3.7 C.1, C.2)."""
        return self.status is not None and (self.status == 0 or self.status in _WARNINGS)


def discover(paths: Iterable[Path]) -> tuple[list[DicomFile], list[Skipped]]:
    """The DICOM files among `paths` and below those that are folders, sorted by path, and the files that are none.

    Raises:
        FileNotFoundError: one of `paths` does not exist.
    """
    found: dict[Path, DicomFile] = {}
    skipped: dict[Path, Skipped] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: name files or folders that do")
        for file in [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if entry.is_file()):
            looked = look_at(file)
            if isinstance(looked, DicomFile):
                found[file] = looked
            else:
                skipped[file] = looked
    return sorted(found.values(), key=lambda file: file.path), sorted(skipped.values(), key=lambda file: file.path)


def look_at(path: Path) -> DicomFile | Skipped:
    """What `path` is, by its preamble and file meta alone (PS3.10 7.1)."""
    try:
        with path.open("rb") as file:
            start = file.read(_MAGIC_OFFSET + len(_MAGIC))
        if start[_MAGIC_OFFSET:] != _MAGIC:
            return Skipped(path, "not a DICOM file")
        meta = read_file_meta_info(path)
        sop_class, instance, syntax = (
            str(meta.get(keyword, "")) for keyword in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
        )
    except OSError as error:
        return Skipped(path, f"not readable: {error.strerror}")
    except (InvalidDicomError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError):
        return Skipped(path, "file meta not readable")
    if not (sop_class and instance and syntax):
        return Skipped(path, "file meta lacks SOP class, SOP instance or transfer syntax")
    if sop_class == MediaStorageDirectoryStorage:
        return Skipped(path, "a DICOMDIR, not an instance")
    return DicomFile(path, sop_class, instance, syntax, path.stat().st_size)


def pack(files: Sequence[DicomFile], jobs: int = 1) -> list[list[DicomFile]]:
    """The files in associations: at most 128 pairs of SOP class and transfer syntax each, and about `jobs` of them when there is work for so many.

    Files of one folder stay together where they can, in their order, because they mostly are one study.
    """
    if not files:
        return []
    share = -(-sum(file.size for file in files) // max(1, jobs))
    associations: list[list[DicomFile]] = []
    folders: dict[Path, list[DicomFile]] = defaultdict(list)
    for file in files:
        folders[file.path.parent].append(file)
    current: list[DicomFile] = []
    contexts: set[tuple[str, str]] = set()
    size = 0
    for file in (file for folder in folders.values() for file in folder):
        full = file.context not in contexts and len(contexts) == CONTEXTS_PER_ASSOCIATION
        if current and (full or size >= share):
            associations.append(current)
            current, contexts, size = [], set(), 0
        current.append(file)
        contexts.add(file.context)
        size += file.size
    return [*associations, current]


def send(
    files: Sequence[DicomFile],
    host: str,
    port: int,
    *,
    calling: str,
    called: str,
    jobs: int = 1,
    progress: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Send every file as it stands on disk; `jobs` associations at a time. One that fails costs only itself.

    `progress` is called once a file, from the sending threads. Never raises for a file or a peer: see each `Outcome`.
    """
    with ThreadPoolExecutor(max_workers=max(1, jobs), thread_name_prefix="send") as pool:
        batches = pool.map(lambda batch: _send_batch(batch, (host, port), (calling, called), progress), pack(files, jobs))
        return [outcome for batch in batches for outcome in batch]


def meaning(status: int) -> str:
    """A C-STORE status in words (PS3.4 B.2.3)."""
    if status in _WARNINGS:
        return "stored with a warning"
    for code in (status, status & 0xFF00, status & 0xF000):
        if code in _MEANINGS and (code or not status):
            return _MEANINGS[code]
    return "failed"


def summary(outcomes: Iterable[Outcome]) -> list[tuple[str, int]]:
    """How many files ended in which way, the most frequent first."""
    return Counter(outcome.text for outcome in outcomes).most_common()


def _send_batch(
    batch: Sequence[DicomFile], address: tuple[str, int], titles: tuple[str, str], progress: Callable[[Outcome], None]
) -> list[Outcome]:
    """Send one association's worth. When the association breaks, the file at hand has failed and the rest goes over a new one."""
    outcomes: list[Outcome] = []

    def done(file: DicomFile, status: int | None, text: str) -> None:
        outcomes.append(Outcome(file.path, file.size, status, text))
        progress(outcomes[-1])

    rest = deque(batch)
    (host, port), (calling, called) = address, titles
    while rest:
        pairs = list(dict.fromkeys(file.context for file in rest))[:CONTEXTS_PER_ASSOCIATION]
        try:
            with store_association(host, port, calling=calling, called=called, pairs=pairs) as association:
                _send_one(association, rest.popleft(), done)
                while rest and association.established:
                    _send_one(association, rest.popleft(), done)
        except NoAssociation as refusal:
            for file in rest:
                done(file, None, str(refusal))
            return outcomes
    return outcomes


def _send_one(association: StoreAssociation, file: DicomFile, done: Callable[[DicomFile, int | None, str], None]) -> None:
    if file.context not in association.accepted:
        done(file, None, "the receiver takes no such SOP class in this transfer syntax")
        return
    try:
        reply = association.send(file.path)
    except NotSent as fault:
        done(file, None, str(fault))
        return
    remark = f" ({reply.comment})" if reply.comment else ""  # PS3.7 C: what the receiver says of it, 64 characters at most
    done(file, reply.status, f"0x{reply.status:04X} {meaning(reply.status)}{remark}")
