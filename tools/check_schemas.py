"""Fail on a breaking change of an event schema: `python tools/check_schemas.py`.

Every record that an earlier committed version of a schema allowed must be allowed by today's, for topics keep records for up to a year and
readers are upgraded before writers. What must change otherwise becomes a new version: `study.quiet.v2.schema.json`, with its own type.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "schemas/events"
COMMON = "common.v1.schema.json"
Schema = dict[str, Any]

LOWER_BOUNDS = ("minimum", "minLength", "minItems", "exclusiveMinimum")
UPPER_BOUNDS = ("maximum", "maxLength", "maxItems", "exclusiveMaximum")
EXACT = ("pattern", "format", "const", "uniqueItems")


def expand(schema: Any, common: Schema) -> Any:
    """The schema with its references replaced by what they stand for."""
    if isinstance(schema, list):
        return [expand(item, common) for item in schema]
    if not isinstance(schema, dict):
        return schema
    own = {key: expand(value, common) for key, value in schema.items() if key not in {"$ref", "$defs"}}
    if "$ref" not in schema:
        return own
    return expand(common["$defs"][schema["$ref"].rsplit("/", 1)[1]], common) | own


def breaking_changes(old: Schema, new: Schema, where: str = "") -> Iterator[str]:  # noqa: C901, PLR0912 - one rule after the other
    """What `old` allowed and `new` may refuse, one sentence each; both schemas expanded."""
    place = where or "the event"
    if not types(old) <= types(new):
        yield f"{place}: a type is no longer allowed ({', '.join(sorted(types(old) - types(new)))})"
    old_values, new_values = old.get("enum"), new.get("enum")
    if new_values is not None and (old_values is None or not set(old_values) <= set(new_values)):
        yield f"{place}: values are no longer allowed"
    for name in LOWER_BOUNDS:
        if name in new and (name not in old or new[name] > old[name]):
            yield f"{place}: {name} is stricter"
    for name in UPPER_BOUNDS:
        if name in new and (name not in old or new[name] < old[name]):
            yield f"{place}: {name} is stricter"
    for name in EXACT:
        if name in new and new[name] != old.get(name) and new[name] is not False:
            yield f"{place}: {name} is another"
    added = set(new.get("required", ())) - set(old.get("required", ()))
    for name in sorted(added):
        yield f"{where}.{name}: is now required"
    properties = new.get("properties", {})
    for name, schema in old.get("properties", {}).items():
        if name in properties:
            yield from breaking_changes(schema, properties[name], f"{where}.{name}")
        elif new.get("additionalProperties", True) is False:
            yield f"{where}.{name}: is gone"
    if new.get("additionalProperties", True) is False and old.get("additionalProperties", True) is not False:
        yield f"{place}: further properties are no longer allowed"
    if "items" in old or "items" in new:
        yield from breaking_changes(old.get("items", {}), new.get("items", {}), f"{where}[]")


def types(schema: Schema) -> set[str]:
    """The JSON types that a schema allows."""
    kind = schema.get("type", ["null", "boolean", "object", "array", "number", "string", "integer"])
    return set(kind if isinstance(kind, list) else [kind])


def check(names: list[str], today: Callable[[str], str], versions: Callable[[str], list[tuple[str, str, str]]]) -> list[str]:
    """Every breaking change of the schemas `names`: `today` reads a file, `versions` gives (commit, schema, common) of each earlier version."""
    common = json.loads(today(COMMON))
    problems = []
    for name in names:
        new = expand(json.loads(today(name)), common)
        for commit, schema, old_common in versions(name):
            old = expand(json.loads(schema), json.loads(old_common))
            problems += [f"{name} against {commit[:10]}: {change}" for change in breaking_changes(old, new)]
    return problems


def git(*arguments: str) -> str:
    """What a git command of this repository prints."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def committed_versions(name: str) -> list[tuple[str, str, str]]:
    """Each committed version of a schema, newest first, with the common definitions of the same commit."""
    commits = git("log", "--format=%H", "--diff-filter=AM", "--", f"{FOLDER}/{name}", f"{FOLDER}/{COMMON}").split()
    there = [commit for commit in commits if git("ls-tree", commit, f"{FOLDER}/{name}")]
    return [(commit, git("show", f"{commit}:{FOLDER}/{name}"), git("show", f"{commit}:{FOLDER}/{COMMON}")) for commit in there]


def vanished_schemas() -> list[str]:
    """Schemas that were committed once and are no longer there."""
    ever = set(git("log", "--format=", "--name-only", "--diff-filter=A", "--", FOLDER).split())
    return sorted(path for path in ever if not (ROOT / path).exists())


def main() -> int:
    """Compare the schemas of the working tree with every committed version."""
    names = sorted(path.name for path in (ROOT / FOLDER).glob("*.schema.json") if path.name != COMMON)
    problems = check(names, lambda name: (ROOT / FOLDER / name).read_text(encoding="utf-8"), committed_versions)
    problems += [f"{path} is gone: records of its type are still in topics" for path in vanished_schemas()]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print("A breaking change needs a new version of the schema beside the old one.", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
