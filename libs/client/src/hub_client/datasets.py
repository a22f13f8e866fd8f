"""Datasets in the object store: which there are, what is in one, and a download that goes on where it stopped.

A version is there when its `dataset.json` is: the exporter writes it last, and never changes it. Everything below
`<name>/<version>/` that the manifest names has the SHA-256 that the manifest says; anything else is not part of the dataset.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Literal

from hub_objectstore import ObjectMissing, ObjectStore, StoreRefused
from pydantic import BaseModel, ConfigDict

Part = Literal["training", "validation"]
BUCKETS: dict[Part, str] = {"training": "datasets-training", "validation": "datasets-validation"}
"""The bucket of each part: a consumer's credentials open one of them."""
CATALOGUE = "_catalogue/"
"""Prefix of one empty object per version begun, `_catalogue/<name>/<version>`, so that finding the names needs no listing of every image."""

_CHUNK = 8 << 20
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


class DatasetMissing(LookupError):
    """There is no such version, or these credentials do not open its bucket. Ask `list_datasets` what there is."""


class WrongContent(ValueError):
    """An object is not what the manifest says, also after it was fetched anew. Report it to the hub; the dataset must not be used."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ManifestReference(_Frozen):
    """Where a part's manifest stands, and its SHA-256."""

    bucket: str
    key: str
    sha256: str
    size: int


class PartSummary(_Frozen):
    """What stands in one part of a dataset."""

    subjects: int
    studies: int
    instances: int
    bytes: int
    """Of all objects in the manifest: images and their metadata."""
    manifest: ManifestReference


class DatasetVersion(_Frozen):
    """One version of a dataset, as its `dataset.json` says. It never changes."""

    dataset: str
    version: int
    request: str
    """Id of the event that asked for it."""
    where: tuple[str, ...]
    training_percent: int
    created: datetime
    training: PartSummary
    validation: PartSummary

    def part(self, part: Part) -> PartSummary:
        """The summary of one part."""
        return self.training if part == "training" else self.validation


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is."""

    files: int
    files_total: int
    bytes: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What a download left in its folder; every file has the SHA-256 of the manifest."""

    folder: Path
    files: int
    fetched: int
    """Files that were not there, or not whole, before."""
    bytes: int


def list_datasets(store: ObjectStore) -> list[DatasetVersion]:
    """Every visible version in the buckets that the store's credentials open, by name and number.

    Raises:
        StoreRefused: the credentials open none of the buckets.
        StoreUnavailable: the store is away; try again later.
    """
    found: dict[tuple[str, int], DatasetVersion] = {}
    refusals: list[StoreRefused] = []
    for bucket in BUCKETS.values():
        try:
            begun = list(store.list(bucket, CATALOGUE))
        except StoreRefused as refusal:
            refusals.append(refusal)
            continue
        for info in begun:
            name, _, number = info.key.removeprefix(CATALOGUE).rpartition("/")
            if not number.isdecimal() or (name, int(number)) in found:
                continue
            dataset = _read(store, bucket, name, int(number))
            if dataset is not None:
                found[name, int(number)] = dataset
    if len(refusals) == len(BUCKETS):
        raise refusals[0]
    return [found[identity] for identity in sorted(found)]


def show(store: ObjectStore, name: str, version: int) -> DatasetVersion:
    """What `dataset.json` says of one version.

    Raises:
        DatasetMissing: it is not there, or not for these credentials.
        StoreUnavailable: the store is away; try again later.
    """
    for bucket in BUCKETS.values():
        dataset = _read(store, bucket, name, version)
        if dataset is not None:
            return dataset
    raise DatasetMissing(f"dataset {name} has no version {version} that these credentials can read: list the datasets to see what there is")


def manifest_paths(store: ObjectStore, dataset: DatasetVersion, part: Part) -> dict[str, str]:
    """SHA-256 of each object of a part, by its path below `<name>/<version>/`.

    Raises:
        DatasetMissing: these credentials do not open the part's bucket.
        WrongContent: the manifest is not the one that `dataset.json` names.
        StoreUnavailable: the store is away; try again later.
    """
    reference = dataset.part(part).manifest
    try:
        text = store.get(reference.bucket, reference.key)
    except (ObjectMissing, StoreRefused):
        raise DatasetMissing(f"these credentials do not open the {part} part of dataset {dataset.dataset}") from None
    if hashlib.sha256(text).hexdigest() != reference.sha256:
        raise WrongContent(
            f"the manifest {reference.key} in {reference.bucket} is not the one that dataset.json names: report it to the hub"
        )
    paths: dict[str, str] = {}
    for number, line in enumerate(text.decode().splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or not _safe(match[2]):
            raise WrongContent(f"line {number} of the manifest {reference.key} is not `<sha256>  <path>`: report it to the hub")
        paths[match[2]] = match[1]
    return paths


def download(
    store: ObjectStore,
    name: str,
    version: int,
    part: Part,
    folder: Path,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    threads: int = 8,
) -> Downloaded:
    """Fetch one part of one version into `folder`, or what is still missing of it, and check every file's SHA-256.

    A stopped download goes on where it stopped, within a file too: what is not whole yet ends in `.part`. Safe to repeat.
    `progress` is called from the calling thread, after each file and at the end.

    Raises:
        DatasetMissing: the version or the part is not there for these credentials.
        WrongContent: an object of the store is not what the manifest says.
        StoreUnavailable: the store is away; repeat the call later.
    """
    dataset = show(store, name, version)
    paths = manifest_paths(store, dataset, part)
    bucket, prefix = BUCKETS[part], f"{name}/{version}/"
    total = dataset.part(part).bytes
    files = fetched = size = 0
    stop = threading.Event()

    def fetch(path: str, sha256: str) -> tuple[bool, int]:
        target = folder.joinpath(*PurePosixPath(path).parts)
        if target.exists() and _digest(target) == sha256:
            return False, target.stat().st_size
        return True, _fetch(store, bucket, prefix + path, target, sha256, stop=stop)

    with ThreadPoolExecutor(threads, thread_name_prefix="download") as pool:
        try:
            for done in _bounded(pool, fetch, paths.items(), threads * 4):
                new, count = done
                files, fetched, size = files + 1, fetched + new, size + count
                progress(Progress(files, len(paths), size, total))
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    _write(folder / "manifest-sha256.txt", store.get(bucket, prefix + "manifest-sha256.txt"))
    _write(folder / "dataset.json", store.get(bucket, prefix + "dataset.json"))
    progress(Progress(files, len(paths), size, total))
    return Downloaded(folder, files, fetched, size)


def _bounded(
    pool: ThreadPoolExecutor, function: Callable[[str, str], tuple[bool, int]], items: Iterable[tuple[str, str]], window: int
) -> Iterator[tuple[bool, int]]:
    """Results as they come; at most `window` calls wait, so that a million files need no million futures."""
    pending: set[Future[tuple[bool, int]]] = set()
    for path, sha256 in items:
        pending.add(pool.submit(function, path, sha256))
        if len(pending) >= window:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    for future in pending:
        yield future.result()


def _fetch(store: ObjectStore, bucket: str, key: str, target: Path, sha256: str, *, stop: threading.Event) -> int:
    """Fetch one object beside its place, go on with what is there of it, check it, then move it to its place."""
    info = store.stat(bucket, key)
    if info is None:
        raise WrongContent(f"{key} stands in the manifest but not in {bucket}: report it to the hub")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    for _ in range(2):  # A partial file of something else is found out by its digest: then once more from the start.
        with partial.open("ab") as file:
            if file.tell() > info.size:
                file.truncate(0)
            while file.tell() < info.size and not stop.is_set():
                file.write(store.get_range(bucket, key, file.tell(), min(_CHUNK, info.size - file.tell())))
        if stop.is_set():
            return 0
        if _digest(partial) == sha256:
            partial.replace(target)
            return info.size
        partial.unlink()
    raise WrongContent(f"{key} in {bucket} is not what the manifest says: report it to the hub")


def _read(store: ObjectStore, bucket: str, name: str, version: int) -> DatasetVersion | None:
    try:
        return DatasetVersion.model_validate_json(store.get(bucket, f"{name}/{version}/dataset.json"))
    except (ObjectMissing, StoreRefused):
        return None


def _safe(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and "\\" not in path and ".." not in parts


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(content)
    partial.replace(path)
