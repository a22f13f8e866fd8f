"""Version numbers: each request for a name gets one, and gets the same one again when it is handled again.

A number is taken by a conditional PUT of an object that holds the request's id. These objects, and the selections beside them, stand in
the bucket `research`, which no consumer of datasets can read: a selection names subjects of both sides.
"""

import json
from dataclasses import dataclass
from typing import Final

from hub_objectstore import ObjectStore

BUCKET: Final = "research"
_PREFIX: Final = "exports/"


@dataclass(frozen=True, slots=True)
class Version:
    """A number of a dataset's name, taken by a request."""

    dataset: str
    number: int
    request: str
    created: str
    """When it was asked for: RFC 3339."""

    @property
    def prefix(self) -> str:
        """What its objects' keys start with, in the buckets of datasets."""
        return f"{self.dataset}/{self.number}/"

    @property
    def selection_key(self) -> str:
        """Where its selection is kept, in the bucket `research`."""
        return f"{_PREFIX}{self.prefix}selection.jsonl.gz"


def find_version(store: ObjectStore, dataset: str, request: str) -> Version | None:
    """The version that this request has taken before."""
    return next((version for version in _taken(store, dataset) if version.request == request), None)


def take_version(store: ObjectStore, dataset: str, request: str, created: str) -> Version:
    """The version of this request: the one it has, or the next number. Of requests at once each gets another."""
    taken = _taken(store, dataset)
    for version in taken:
        if version.request == request:
            return version
    number = max((version.number for version in taken), default=0) + 1
    while True:
        version = Version(dataset, number, request, created)
        content = json.dumps({"created": created, "dataset": dataset, "request": request, "version": number}, sort_keys=True).encode()
        if store.put_if_absent(BUCKET, _key(dataset, number), content, content_type="application/json"):
            return version
        # Taken meanwhile; by this very request where two processes handle it, or where the answer to the first PUT was lost.
        other = _read(store, dataset, number)
        if other.request == request:
            return other
        number += 1


def _taken(store: ObjectStore, dataset: str) -> list[Version]:
    keys = [info.key for info in store.list(BUCKET, f"{_PREFIX}{dataset}/") if info.key.endswith("/request.json")]
    return [_read(store, dataset, int(key.split("/")[2])) for key in keys]


def _read(store: ObjectStore, dataset: str, number: int) -> Version:
    content = json.loads(store.get(BUCKET, _key(dataset, number)))
    return Version(dataset, number, content["request"], content["created"])


def _key(dataset: str, number: int) -> str:
    return f"{_PREFIX}{dataset}/{number}/request.json"
