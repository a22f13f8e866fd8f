"""Every schema has examples, every example is read by the types, and schemas only grow."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_events import TOPICS, Event, UnreadableEvent, decode, encode
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from support.tools import ROOT, tool

SCHEMAS = ROOT / "schemas"
EVENT_SCHEMAS = sorted(path for path in (SCHEMAS / "events").glob("*.schema.json") if not path.name.startswith("common."))
EXAMPLES = sorted((SCHEMAS / "examples").glob("*.json"))
ASYNCAPI: dict[str, Any] = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text())
REGISTRY: Registry[Any] = Registry().with_resources(
    [(path.name, Resource.from_contents(json.loads(path.read_text()))) for path in (SCHEMAS / "events").glob("*.json")]
)


def schema_of(example: Path) -> Path:
    return SCHEMAS / "events" / f"{example.name.rsplit('.', 2)[0]}.schema.json"


def topic_of(schema: Path) -> tuple[str, str]:
    kind = f"hub.{schema.name.removesuffix('.schema.json')}"
    return next((name, kind) for name, topic in TOPICS.items() if kind in topic.types)


@pytest.mark.parametrize("schema", EVENT_SCHEMAS, ids=lambda path: path.name)
def test_schema_is_valid_strict_and_has_an_example(schema: Path) -> None:
    document = json.loads(schema.read_text())
    Draft202012Validator.check_schema(document)
    assert document["additionalProperties"] is False
    assert document["description"]
    assert any(schema_of(example) == schema for example in EXAMPLES), (
        f"write schemas/examples/{schema.name.removesuffix('.schema.json')}.1.json"
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_meets_its_schema_and_passes_the_envelope_unchanged(example: Path) -> None:
    payload = json.loads(example.read_text())
    validator = Draft202012Validator(json.loads(schema_of(example).read_text()), registry=REGISTRY, format_checker=FormatChecker())
    validator.validate(payload)
    topic, kind = topic_of(schema_of(example))
    event = Event.first(topic, "1.2.3", TOPICS[topic].types[kind].model_validate(payload), source="test")
    key, value, headers = encode(event)
    assert json.loads(value) == payload
    assert decode(topic, key, value, headers) == event


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_a_field_that_the_schema_does_not_know_is_refused(example: Path) -> None:
    topic, kind = topic_of(schema_of(example))
    value = json.dumps(json.loads(example.read_text()) | {"patient_name": "DOE^JANE"}).encode()
    _, _, headers = encode(Event.first(topic, "k", TOPICS[topic].types[kind].model_validate_json(example.read_text()), source="test"))
    with pytest.raises(UnreadableEvent) as refusal:
        decode(topic, b"k", value, headers)
    assert refusal.value.reason == "not-the-schema"
    assert "JANE" not in str(refusal.value)


def test_every_schema_is_carried_by_a_topic_and_every_payload_of_a_topic_is_a_schema() -> None:
    payloads = {message["payload"]["schema"]["$ref"] for message in ASYNCAPI["components"]["messages"].values()}
    assert payloads == {f"./events/{path.name}" for path in EVENT_SCHEMAS}


def test_topics_of_the_identifiable_zone_keep_records_seven_days_at_most() -> None:
    week = 7 * 24 * 60 * 60 * 1000
    kept = {name: topic.retention_ms for name, topic in TOPICS.items() if topic.zone == "identifiable"}
    assert kept
    assert all(0 < retention <= week for retention in kept.values())
    assert all("delete" in TOPICS[name].cleanup_policy for name in kept)


def test_every_topic_that_a_service_reads_has_a_dead_letter_topic() -> None:
    for topic in TOPICS.values():
        readers = [service for service in topic.read_by if service != "console"]
        if readers:
            assert TOPICS[topic.dead_letter_topic].zone == topic.zone
            assert set(readers) <= set(TOPICS[topic.dead_letter_topic].made_by)


def test_no_consumer_reads_across_zones_but_deidentification_writes_across() -> None:
    crossing = {
        service
        for service in {name for topic in TOPICS.values() for name in (*topic.made_by, *topic.read_by)} - {"console"}
        if len({topic.zone for topic in TOPICS.values() if service in (*topic.made_by, *topic.read_by)}) > 1
    }
    assert crossing == {"deidentification"}


def test_generated_files_are_what_the_schemas_make() -> None:
    result = subprocess.run([sys.executable, ROOT / "tools" / "generate_events.py", "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_no_schema_breaks_an_earlier_committed_version() -> None:
    result = subprocess.run([sys.executable, ROOT / "tools" / "check_schemas.py"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


BASE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["a"],
    "properties": {
        "a": {"type": "string", "maxLength": 5},
        "b": {"type": "integer", "minimum": 1},
        "c": {"enum": ["x", "y"]},
        "d": {"type": "array", "items": {"type": ["string", "null"]}},
    },
}


@pytest.mark.parametrize(
    ("place", "value", "breaks"),
    [
        (("required",), ["a", "b"], True),
        (("required",), [], False),
        (("properties", "a"), {"type": "string", "maxLength": 4}, True),
        (("properties", "a"), {"type": "string"}, False),
        (("properties", "a"), {"type": "string", "maxLength": 5, "pattern": "^a"}, True),
        (("properties", "b"), {"type": "integer", "minimum": 2}, True),
        (("properties", "b"), {"type": ["integer", "null"]}, False),
        (("properties", "b"), {"type": "string"}, True),
        (("properties", "c"), {"enum": ["x"]}, True),
        (("properties", "c"), {"enum": ["x", "y", "z"]}, False),
        (("properties", "d"), {"type": "array", "items": {"type": "string"}}, True),
        (("properties",), {key: BASE["properties"][key] for key in "abc"}, True),
        (("properties",), BASE["properties"] | {"e": {"type": "string"}}, False),
    ],
)
def test_the_check_tells_a_breaking_change_from_a_growing_one(place: tuple[str, ...], value: Any, breaks: bool) -> None:
    new = json.loads(json.dumps(BASE))
    target = new
    for name in place[:-1]:
        target = target[name]
    target[place[-1]] = value
    assert bool(list(tool("check_schemas").breaking_changes(BASE, new))) is breaks


def test_the_check_looks_through_references() -> None:
    common = json.dumps({"$defs": {"Uid": {"type": "string", "maxLength": 64}}})
    shorter = json.dumps({"$defs": {"Uid": {"type": "string", "maxLength": 10}}})
    schema = json.dumps({"type": "object", "properties": {"uid": {"$ref": "common.v1.schema.json#/$defs/Uid"}}})
    check = tool("check_schemas").check
    files = {"common.v1.schema.json": shorter, "x.v1.schema.json": schema}
    assert check(["x.v1.schema.json"], files.__getitem__, lambda _: [("abcdef", schema, common)]) == [
        "x.v1.schema.json against abcdef: .uid: maxLength is stricter"
    ]
    files["common.v1.schema.json"] = common
    assert check(["x.v1.schema.json"], files.__getitem__, lambda _: [("abcdef", schema, common)]) == []
