"""Make hub_events/types.py and hub_events/registry.py from schemas/, or with --check say whether they are as the schemas have them."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SCHEMAS = ROOT / "schemas"
PACKAGE = ROOT / "libs" / "events" / "src" / "hub_events"
HEADER = "# Made from schemas/ by tools/generate_events.py; do not edit, run `make schemas`.\n"


def combined_schema() -> dict[str, Any]:
    """All event schemas as one document whose references are local, as the generator wants them."""
    definitions: dict[str, Any] = {}
    for path in sorted((SCHEMAS / "events").glob("*.json")):
        text = path.read_text(encoding="utf-8").replace("common.v1.schema.json#/$defs/", "#/$defs/")
        schema = json.loads(text)
        if path.name.startswith("common."):
            definitions |= schema["$defs"]
        else:
            definitions[schema["title"]] = {key: value for key, value in schema.items() if key not in {"$schema", "$id"}} | {
                "x-event": True
            }
    events = [{"$ref": f"#/$defs/{title}"} for title, schema in definitions.items() if schema.get("x-event")]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "AnyEvent", "anyOf": events, "$defs": definitions}


def types_source() -> str:
    """The Python types, one frozen pydantic model an event."""
    with tempfile.TemporaryDirectory() as folder:
        schema, output = Path(folder) / "schema.json", Path(folder) / "types.py"
        schema.write_text(json.dumps(combined_schema()), encoding="utf-8")
        command = [
            sys.executable, "-m", "datamodel_code_generator", "--input", str(schema), "--input-file-type", "jsonschema", "--output", str(output),
            "--output-model-type", "pydantic_v2.BaseModel", "--target-python-version", "3.11", "--use-standard-collections", "--use-union-operator",
            "--use-schema-description", "--field-constraints", "--use-annotated", "--use-double-quotes", "--disable-timestamp", "--frozen-dataclasses",
            "--collapse-root-models", "--enum-field-as-literal", "all", "--enable-faux-immutability", "--reuse-model", "--formatters", "builtin",
            "--output-datetime-class", "AwareDatetime", "--custom-file-header", HEADER + '"""What the events carry: see schemas/events."""',
        ]  # fmt: skip
        subprocess.run(command, check=True)
        return output.read_text(encoding="utf-8")


def registry_source() -> str:
    """The topics of schemas/asyncapi.yaml as a Python table."""
    document = yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text(encoding="utf-8"))
    messages = document["components"]["messages"]
    lines = [
        HEADER.rstrip(),
        '"""Every topic of the hub: see schemas/asyncapi.yaml."""',
        "",
        "from hub_events import types",
        "from hub_events.topic import Topic",
        "",
    ]
    services: dict[str, dict[str, list[str]]] = {}
    for operation in document["operations"].values():
        channel = operation["channel"]["$ref"].rsplit("/", 1)[1]
        services.setdefault(channel, {"send": [], "receive": []})[operation["action"]].append(operation["x-service"])
    lines.append("TOPICS: dict[str, Topic] = {")
    for name, channel in document["channels"].items():
        kafka = channel["bindings"]["kafka"]
        configuration = kafka["topicConfiguration"]
        others = {key: str(value) for key, value in configuration.items() if key not in {"cleanup.policy", "retention.ms"}}
        lines += [
            f'    "{channel["address"]}": Topic(',
            f'        name="{channel["address"]}",',
            *_block(
                "types", [f'"{messages[message]["name"]}": types.{messages[message]["title"]},' for message in channel.get("messages", {})]
            ),
            f"        partitions={kafka['partitions']},",
            f'        cleanup_policy="{",".join(configuration["cleanup.policy"])}",',
            f"        retention_ms={configuration['retention.ms']},",
            f"        made_by={_tuple(services.get(name, {}).get('send', []))},",
            f"        read_by={_tuple(services.get(name, {}).get('receive', []))},",
            *((f"        broker_settings={json.dumps(others)},",) if others else ()),
            "    ),",
        ]
    return "\n".join([*lines, "}", ""])


def _block(name: str, items: list[str]) -> list[str]:
    return [f"        {name}={{", *(f"            {item}" for item in items), "        },"] if items else [f"        {name}={{}},"]


def _tuple(names: list[str]) -> str:
    return "(" + ", ".join(f'"{name}"' for name in sorted(names)) + ("," if len(names) == 1 else "") + ")"


def main() -> int:
    """Write the two files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is not what the schemas make")
    check = parser.parse_args().check
    stale = 0
    for path, source in ((PACKAGE / "types.py", types_source()), (PACKAGE / "registry.py", registry_source())):
        if check and (not path.exists() or path.read_text(encoding="utf-8") != source):
            print(f"{path.relative_to(ROOT)} is not what schemas/ makes: run `make schemas` and commit the result.", file=sys.stderr)
            stale = 1
        elif not check:
            path.write_text(source, encoding="utf-8")
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
