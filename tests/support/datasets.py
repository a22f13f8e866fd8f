"""A store that fails at a chosen step, and an index in memory, for tests of export."""

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hub_dicom.matching import Condition
from hub_export.cohort import Instance
from hub_objectstore import ObjectStore


class Killed(BaseException):
    """The process died here: nothing of it runs on. No `except Exception` may catch it."""


class MortalStore:
    """A store whose user dies at its n-th write: before the write, or after it and before it hears of it."""

    def __init__(self, store: ObjectStore, *, dies_at: int, after: bool = False) -> None:
        self._store = store
        self._dies_at = dies_at
        self._after = after
        self._lock = threading.Lock()
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, *arguments: Any, **named: Any) -> None:
        self._write(self._store.put, *arguments, **named)

    def put_if_absent(self, *arguments: Any, **named: Any) -> bool:
        return bool(self._write(self._store.put_if_absent, *arguments, **named))

    def _write(self, write: Any, *arguments: Any, **named: Any) -> Any:
        with self._lock:
            self.writes += 1
            number = self.writes
        if number > self._dies_at or (number == self._dies_at and not self._after):
            raise Killed
        result = write(*arguments, **named)
        if number == self._dies_at:
            raise Killed
        return result


class ListIndex:
    """An index of given instances that meets every condition."""

    def __init__(self, instances: Sequence[Instance]) -> None:
        self.instances = list(instances)
        self.selections = 0

    @contextmanager
    def select(self, conditions: Iterable[Condition]) -> Iterator[Iterator[Instance]]:
        self.selections += 1
        order = sorted(self.instances, key=lambda one: (one.subject, one.study_instance_uid, one.series_instance_uid, one.sop_instance_uid))
        yield iter(order)


def instance(number: int, *, subject: str | None = None, modality: str = "CT") -> Instance:
    """An instance whose object is `body_of(number)`."""
    body = body_of(number)
    return Instance(
        subject=subject or f"Subject{number:04}",
        study_instance_uid=f"1.{number}",
        series_instance_uid=f"1.{number}.1",
        sop_instance_uid=f"1.{number}.1.1",
        modality=modality,
        bucket="research",
        key=f"instances/1.{number}/source01/1.{number}.1/1.{number}.1.1/object.dcm",
        sha256=hashlib.sha256(body).hexdigest(),
        size=len(body),
        attributes={"00080060": {"vr": "CS", "Value": [modality]}, "00081030": {"vr": "LO", "Value": ["Thörax"]}},
    )


def body_of(number: int) -> bytes:
    return f"image {number}".encode() * (number % 7 + 1)


def put_objects(store: ObjectStore, instances: Iterable[Instance]) -> None:
    for one in instances:
        store.put(one.bucket, one.key, body_of(int(one.study_instance_uid.split(".")[1])))


def content(store: ObjectStore, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Everything in the buckets of datasets."""
    return {
        f"{bucket}/{info.key}": store.get(bucket, info.key)
        for bucket in ("datasets-training", "datasets-validation")
        for info in store.list(bucket, "")
        if not info.key.endswith(without or ("\n",))
    }
