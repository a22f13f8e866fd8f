"""QIDO-RS: searching for studies, series and instances (PS3.18 10.6), on the canonical source of each study.

`read_query` turns query parameters into a `Query`, `search` answers it. Neither knows HTTP.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from hub_dicom import matching
from hub_dicom.matching import Column, Condition, MalformedCondition, UnsupportedCondition
from psycopg import Connection
from psycopg.rows import TupleRow

from hub_indexing.levels import SERIES_TAGS, STUDY_TAGS

Level = Literal["studies", "series", "instances"]
Dataset = dict[str, Any]

_UINT: Final = re.compile(r"[0-9]{1,9}")
_SEARCH_PARAMETERS: Final = frozenset({"fuzzymatching", "emptyvaluematching", "multiplevaluematching", "includefield", "limit", "offset"})
_CONTENT_PARAMETERS: Final = frozenset({"accept", "charset"})

STUDY_DATE, STUDY_TIME, ACCESSION_NUMBER = "00080020", "00080030", "00080050"
SOP_CLASS_UID, SOP_INSTANCE_UID, INSTANCE_AVAILABILITY, MODALITY = "00080016", "00080018", "00080056", "00080060"
MODALITIES_IN_STUDY, SOP_CLASSES_IN_STUDY, REFERRING_PHYSICIAN_NAME = "00080061", "00080062", "00080090"
TIMEZONE_OFFSET_FROM_UTC, SERIES_DESCRIPTION = "00080201", "0008103E"
PATIENT_NAME, PATIENT_ID, PATIENT_BIRTH_DATE, PATIENT_SEX = "00100010", "00100020", "00100030", "00100040"
STUDY_INSTANCE_UID, SERIES_INSTANCE_UID, STUDY_ID, SERIES_NUMBER, INSTANCE_NUMBER = (
    "0020000D",
    "0020000E",
    "00200010",
    "00200011",
    "00200013",
)
STUDY_RELATED_SERIES, STUDY_RELATED_INSTANCES, SERIES_RELATED_INSTANCES = "00201206", "00201208", "00201209"
NUMBER_OF_FRAMES, ROWS, COLUMNS, BITS_ALLOCATED = "00280008", "00280010", "00280011", "00280100"
STEP_START_DATE, STEP_START_TIME, REQUEST_ATTRIBUTES_SEQUENCE = "00400244", "00400245", "00400275"

# Tables 10.6.3-3, -4 and -5. Required attributes are returned without a value where the study has none; the others only with one.
# Retrieve URL (0008,1190) is for instances that the Retrieve transaction serves; there is none here yet.
_REQUIRED: Final[Mapping[Level, Mapping[str, str]]] = {
    "studies": {
        STUDY_DATE: "DA", STUDY_TIME: "TM", ACCESSION_NUMBER: "SH", REFERRING_PHYSICIAN_NAME: "PN", PATIENT_NAME: "PN", PATIENT_ID: "LO",
        PATIENT_BIRTH_DATE: "DA", PATIENT_SEX: "CS", STUDY_INSTANCE_UID: "UI", STUDY_ID: "SH",
    },
    "series": {MODALITY: "CS", SERIES_INSTANCE_UID: "UI", SERIES_NUMBER: "IS"},
    "instances": {SOP_CLASS_UID: "UI", SOP_INSTANCE_UID: "UI", INSTANCE_NUMBER: "IS"},
}  # fmt: skip
_IF_KNOWN: Final[Mapping[Level, frozenset[str]]] = {
    "studies": frozenset({TIMEZONE_OFFSET_FROM_UTC}),
    "series": frozenset({TIMEZONE_OFFSET_FROM_UTC, SERIES_DESCRIPTION, STEP_START_DATE, STEP_START_TIME, REQUEST_ATTRIBUTES_SEQUENCE}),
    "instances": frozenset({TIMEZONE_OFFSET_FROM_UTC, ROWS, COLUMNS, BITS_ALLOCATED, NUMBER_OF_FRAMES}),
}
_OF_STUDY: Final = "EXISTS (SELECT 1 FROM {table} x WHERE x.study_instance_uid = s.study_instance_uid AND x.source = s.source AND {{}})"
_STUDY_COLUMNS: Final[Mapping[str, Column]] = {
    STUDY_INSTANCE_UID: Column("s.study_instance_uid"),
    MODALITIES_IN_STUDY: Column("x.modality", _OF_STUDY.format(table="series")),
    SOP_CLASSES_IN_STUDY: Column("x.sop_class_uid", _OF_STUDY.format(table="instances")),
}
_SERIES_COLUMNS: Final = {**_STUDY_COLUMNS, SERIES_INSTANCE_UID: Column("e.series_instance_uid"), MODALITY: Column("e.modality")}
_INSTANCE_COLUMNS: Final = {
    **_SERIES_COLUMNS,
    SOP_INSTANCE_UID: Column("i.sop_instance_uid"),
    SOP_CLASS_UID: Column("i.sop_class_uid"),
}
_COLUMNS: Final[Mapping[Level, Mapping[str, Column]]] = {
    "studies": _STUDY_COLUMNS,
    "series": _SERIES_COLUMNS,
    "instances": _INSTANCE_COLUMNS,
}


@dataclass(frozen=True, slots=True)
class Query:
    """One search."""

    level: Level
    conditions: tuple[Condition, ...]
    include: frozenset[str]
    """Tags to return besides the required ones."""
    include_all: bool
    limit: int
    offset: int
    warnings: tuple[str, ...]
    """What was not done as asked; for the Warning header."""
    cut: bool
    """Whether the server's own maximum, not the asker's limit, ends the results."""


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a search."""

    datasets: list[Dataset]
    """In DICOM JSON, ordered by UID."""
    more: bool
    """There are results after these."""


def read_query(level: Level, parameters: Iterable[tuple[str, str]], *, most: int) -> Query:
    """The search that query parameters ask for (PS3.18 8.3.4).

    Args:
        level: what is searched for.
        parameters: names and values, decoded.
        most: the server's maximum of results.

    Raises:
        MalformedCondition: a parameter breaks a rule of the Standard.
    """
    conditions: dict[str, Condition] = {}
    include: set[str] = set()
    include_all = False
    single: dict[str, str] = {}
    warnings: list[str] = []
    for name, value in parameters:
        if name == "includefield":
            include_all |= value == "all"
            include |= _included(level, value, warnings)
        elif name in _SEARCH_PARAMETERS or name in _CONTENT_PARAMETERS:
            if name in single:
                raise MalformedCondition(f"the parameter {name} stands twice; write it once")
            single[name] = value
        else:
            condition = _condition(level, name, value, warnings)
            if condition is None:
                continue
            identity = ".".join(condition.attribute.path)
            if identity in conditions:
                raise MalformedCondition(f"the attribute {name} stands twice; write one condition for it")
            conditions[identity] = condition
            include.add(condition.attribute.tag)
    if include_all and any(name == "includefield" and value != "all" for name, value in parameters):
        raise MalformedCondition("includefield=all stands alone: leave the other includefield parameters out (PS3.18 8.3.4.3)")
    _note_unsupported(single, warnings)
    wanted = _number(single, "limit")
    limit = most if wanted is None else min(wanted, most)
    return Query(
        level,
        tuple(conditions.values()),
        frozenset(include),
        include_all,
        limit,
        _number(single, "offset") or 0,
        tuple(warnings),
        wanted is None or wanted > most,
    )


def search(connection: Connection[TupleRow], query: Query, *, study: str | None = None, series: str | None = None) -> Found:
    """The canonical studies, series or instances that match, within a study or series where one is given.

    Raises:
        psycopg.OperationalError: the database is away or took too long.
    """
    statement, values = _statement(query, study, series)
    with connection.cursor() as cursor:
        rows = cursor.execute(statement.encode(), values).fetchall()
    return Found([_dataset(query, row, study, series) for row in rows[: query.limit]], len(rows) > query.limit)


def _condition(level: Level, name: str, value: str, warnings: list[str]) -> Condition | None:
    try:
        condition = matching.read_condition(name, value)
    except UnsupportedCondition as problem:
        warnings.append(f"{_ascii(str(problem))}. It was ignored.")
        return None
    if not _is_key(level, condition.attribute.tag):
        warnings.append(f"The attribute {_ascii(name)} is no key of a search for {level}. It was ignored.")
        return None
    return condition


def _is_key(level: Level, tag: str) -> bool:
    if level == "instances" or tag in _COLUMNS[level] or tag in STUDY_TAGS:
        return True
    return level == "series" and tag in SERIES_TAGS


def _included(level: Level, value: str, warnings: list[str]) -> set[str]:
    tags: set[str] = set()
    for name in value.split(","):
        if name == "all":
            if value != "all":
                raise MalformedCondition("includefield=all stands alone: leave the other attributes out (PS3.18 8.3.4.3)")
            continue
        try:
            tag = matching.read_attribute(name).tag
        except UnsupportedCondition as problem:
            warnings.append(f"{_ascii(str(problem))}. It is not returned.")
            continue
        # PS3.18 10.6.3.3: attributes of a lower level are not returned.
        if _is_key(level, tag):
            tags.add(tag)
    return tags


def _note_unsupported(single: Mapping[str, str], warnings: list[str]) -> None:
    texts = {
        "fuzzymatching": "The fuzzymatching parameter is not supported. Only literal matching has been performed.",
        "emptyvaluematching": "The emptyvaluematching parameter is not supported. Empty Value Matching has not been performed.",
        "multiplevaluematching": "The multiplevaluematching parameter is not supported. Multiple Value Matching has not been performed.",
    }
    for name, text in texts.items():
        value = single.get(name, "false")
        if value not in {"true", "false"}:
            raise MalformedCondition(f"{name} is true or false, not {value[:80]!r}")
        if value == "true":
            warnings.append(text)


def _number(single: Mapping[str, str], name: str) -> int | None:
    value = single.get(name)
    if value is None:
        return None
    if not _UINT.fullmatch(value):
        raise MalformedCondition(f"{name} is a number of results, not {value[:80]!r}")
    return int(value)


def _statement(query: Query, study: str | None, series: str | None) -> tuple[str, list[object]]:
    """SQL and its parameters. What varies in the text comes from tables of this module; what was asked is in the parameters."""
    level = query.level
    values: list[object] = []
    studies = (
        "s.study_instance_uid, s.attributes, s.instances,"
        " (SELECT count(*) FROM series x WHERE (x.study_instance_uid, x.source) = (s.study_instance_uid, s.source)),"
        " (SELECT array_agg(DISTINCT x.modality ORDER BY x.modality) FROM series x"
        " WHERE (x.study_instance_uid, x.source) = (s.study_instance_uid, s.source))"
    )
    if level == "studies":
        selected, tables = studies, "canonical_studies s"
        order = "s.study_instance_uid"
    elif level == "series":
        selected = f"{studies}, e.series_instance_uid, e.attributes, e.instances, e.modality"
        tables = "canonical_studies s JOIN series e USING (study_instance_uid, source)"
        order = "s.study_instance_uid, e.series_instance_uid"
    else:
        if query.include_all:
            attributes = "i.attributes"
        else:
            attributes = "(SELECT jsonb_object_agg(a.key, a.value) FROM jsonb_each(i.attributes) a WHERE a.key = ANY(%s))"
            values.append(sorted({*_REQUIRED[level], *_IF_KNOWN[level], *query.include}))
        selected = f"{studies}, e.series_instance_uid, e.attributes, e.instances, e.modality, i.sop_instance_uid, {attributes}"
        tables = (
            "canonical_studies s JOIN series e USING (study_instance_uid, source)"
            " JOIN instances i USING (study_instance_uid, source, series_instance_uid)"
        )
        order = "s.study_instance_uid, e.series_instance_uid, i.sop_instance_uid"
    where = ["true"]
    for expression, value in (("s.study_instance_uid", study), ("e.series_instance_uid", series)):
        if value is not None:
            where.append(f"{expression} = %s")
            values.append(value)
    for condition in query.conditions:
        part = matching.predicate(condition, _attributes_of(level, condition.attribute.tag), _COLUMNS[level])
        where.append(part.sql)
        values.extend(part.parameters)
    values += [query.limit + 1, query.offset]
    return f"SELECT {selected} FROM {tables} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT %s OFFSET %s", values  # noqa: S608 -- see above


def _attributes_of(level: Level, tag: str) -> str:
    if tag in STUDY_TAGS:
        return "s.attributes"
    return "e.attributes" if tag in SERIES_TAGS or level == "series" else "i.attributes"


def _dataset(query: Query, row: TupleRow, study: str | None, series: str | None) -> Dataset:
    """A result in DICOM JSON: the required attributes of its level, of the levels above where none was given, and what was asked for."""
    uid, attributes, instances, series_count, modalities, *rest = row
    found: Dataset = {STUDY_INSTANCE_UID: {"vr": "UI", "Value": [uid]}}
    if query.level == "studies" or study is None:
        found |= _chosen("studies", attributes, query)
        found |= {
            MODALITIES_IN_STUDY: {"vr": "CS", "Value": modalities},
            STUDY_RELATED_SERIES: {"vr": "IS", "Value": [series_count]},
            STUDY_RELATED_INSTANCES: {"vr": "IS", "Value": [instances]},
        }
    else:
        found |= {tag: attributes[tag] for tag in query.include & attributes.keys() & STUDY_TAGS}
    found[STUDY_INSTANCE_UID] = {"vr": "UI", "Value": [uid]}
    if rest:
        series_uid, series_attributes, series_instances, modality, *instance = rest
        if query.level == "series" or series is None:
            found |= _chosen("series", series_attributes, query)
            found |= {
                MODALITY: {"vr": "CS", "Value": [modality]},
                SERIES_RELATED_INSTANCES: {"vr": "IS", "Value": [series_instances]},
            }
        else:
            found |= {tag: series_attributes[tag] for tag in query.include & series_attributes.keys() & SERIES_TAGS}
        found[SERIES_INSTANCE_UID] = {"vr": "UI", "Value": [series_uid]}
        if instance:
            found |= _chosen("instances", instance[1] or {}, query)
            found[SOP_INSTANCE_UID] = {"vr": "UI", "Value": [instance[0]]}
    # PS3.3 C.4.23.1.1: no Retrieve transaction of this service serves the instances.
    found[INSTANCE_AVAILABILITY] = {"vr": "CS", "Value": ["UNAVAILABLE"]}
    return dict(sorted(found.items()))


def _chosen(level: Level, attributes: Dataset, query: Query) -> Dataset:
    required = {tag: attributes.get(tag) or {"vr": vr} for tag, vr in _REQUIRED[level].items()}
    if query.include_all:
        return required | attributes
    return required | {tag: attributes[tag] for tag in (_IF_KNOWN[level] | query.include) & attributes.keys()}


def _ascii(text: str) -> str:
    """For a header."""
    return text.encode("ascii", "replace").decode()
