"""Which instances a dataset is made of: conditions into SQL over the index's view, and the selection as it was found.

A selection is read once and kept as an object. Whatever happens to the index or to this process afterwards, the dataset is made of it.
"""

import gzip
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Final, Protocol, cast

import psycopg
from hub_dicom import matching
from hub_dicom.matching import BadCondition, Column, Condition
from hub_objectstore import ObjectStore
from hub_runtime import RetryLater
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from hub_export.errors import Refuse

_VIEW: Final = "research_index.export_instances"
_COMPUTED: Final = {
    "00080056": "Instance Availability",
    "00080061": "Modalities in Study; use Modality",
    "00080062": "SOP Classes in Study; use SOPClassUID",
    "00201206": "Number of Study Related Series",
    "00201208": "Number of Study Related Instances",
    "00201209": "Number of Series Related Instances",
}
_COLUMNS: Final = {
    "00080016": Column("i.sop_class_uid"),
    "00080018": Column("i.sop_instance_uid"),
    "00080060": Column("i.modality"),
    "0020000D": Column("i.study_instance_uid"),
    "0020000E": Column("i.series_instance_uid"),
}
_IN_MEMORY: Final = 16 << 20
_ROWS_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of the selection."""

    subject: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    modality: str
    bucket: str
    key: str
    sha256: str
    size: int
    attributes: dict[str, Any]
    """The data set without bulk data, DICOM JSON (PS3.18 F)."""


class Index(Protocol):
    """Where instances are found."""

    def select(self, conditions: Iterable[Condition]) -> AbstractContextManager[Iterator[Instance]]:
        """The instances of canonical sources that meet all conditions, by subject, study, series and instance."""
        ...


class PostgresIndex:
    """The index's view in PostgreSQL."""

    def __init__(self, pool: ConnectionPool[Connection[TupleRow]]) -> None:
        self._pool = pool

    @contextmanager
    def select(self, conditions: Iterable[Condition]) -> Iterator[Iterator[Instance]]:
        """See `Index.select`.

        Raises:
            psycopg.OperationalError: the database is away.
            RetryLater: the index has not made its view yet, or does not let this role read it yet.
        """
        where, values = to_sql(conditions)
        statement = (
            "SELECT subject, study_instance_uid, series_instance_uid, sop_instance_uid, modality,"  # noqa: S608 - no value is in it
            f" object_bucket, object_key, object_sha256, object_size, attributes FROM {_VIEW} i WHERE {where}"
            " ORDER BY subject, study_instance_uid, series_instance_uid, sop_instance_uid"
        )
        # A cursor of the server's: memory holds some rows, not the dataset.
        with self._pool.connection() as connection, connection.transaction(), connection.cursor("selection") as cursor:
            cursor.itersize = _ROWS_AT_ONCE
            try:
                cursor.execute(statement.encode(), values)
            except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
                raise RetryLater("index-not-ready", f"{_VIEW} is not there for this role: is indexing running?") from None
            yield (Instance(*row) for row in cursor)


def read_conditions(where: Iterable[str]) -> list[Condition]:
    """The conditions `Keyword=value` of a request.

    Raises:
        Refuse: one cannot be matched; the reason names it.
    """
    conditions = []
    for text in where:
        try:
            condition = matching.read_condition(*matching.split_condition(text))
        except BadCondition as problem:
            raise Refuse(f"the condition {text[:100]!r} cannot be used: {problem}"[:500]) from None
        if condition.attribute.tag in _COMPUTED:
            raise Refuse(
                f"the condition {text[:100]!r} cannot be used: datasets choose instances, which have no {_COMPUTED[condition.attribute.tag]}"
            )
        conditions.append(condition)
    return conditions


def to_sql(conditions: Iterable[Condition]) -> tuple[str, list[object]]:
    """The conditions, all of which must hold, as SQL on the view `i`, and its parameters."""
    parts = [matching.predicate(condition, "i.attributes", _COLUMNS) for condition in conditions]
    return " AND ".join(part.sql for part in parts) or "true", [value for part in parts for value in part.parameters]


@dataclass(frozen=True, slots=True)
class Packed:
    """A selection in a file: gzip of JSON lines."""

    file: BinaryIO
    count: int
    size: int
    sha256: str


@contextmanager
def pack(instances: Iterable[Instance]) -> Iterator[Packed]:
    """The selection in a temporary file, the same bytes for the same selection; the file is gone afterwards."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        count = 0
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=5) as lines:
            for instance in instances:
                lines.write(canonical_json(asdict(instance)))
                count += 1
        size = file.tell()
        file.seek(0)
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        file.seek(0)
        yield Packed(cast("BinaryIO", file), count, size, digest.hexdigest())


def unpack(open_object: Callable[[], AbstractContextManager[BinaryIO]]) -> Iterator[Instance]:
    """The selection from its object."""
    with open_object() as stream, gzip.GzipFile(fileobj=stream) as lines:
        for line in lines:
            yield Instance(**json.loads(line))


def canonical_json(value: dict[str, Any]) -> bytes:
    """JSON with sorted keys, one line: the same bytes for the same content."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def keep(store: ObjectStore, bucket: str, key: str, packed: Packed) -> None:
    """Keep the selection under its key, unless one is kept there already: that one counts."""
    store.put_if_absent(bucket, key, packed.file, size=packed.size, sha256=packed.sha256, content_type="application/gzip")
