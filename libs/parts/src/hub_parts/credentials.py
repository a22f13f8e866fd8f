"""Who may do what with the parts: one identity per service, kept in credentials.json."""

import json
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_parts.files import write_private

BUCKETS = ("identifiable", "research", "datasets-training", "datasets-validation")
DATASETS = ("datasets-training", "datasets-validation")

ADMIN = "admin"
SERVICES = ("receiver", "stow", "assembler", "closer", "commitment", "gate", "deidentification", "indexing", "export", "console")
CONSUMERS = ("training-consumer", "validation-consumer")
IDENTITIES = (*SERVICES, *CONSUMERS, ADMIN)

REGISTRY_NAMES = {
    "ingest.receiver": "receiver",
    "ingest.stow": "stow",
    "ingest.assembler": "assembler",
    "ingest.closer": "closer",
    "ingest.commitment": "commitment",
    "ingest.gate": "gate",
    "deidentification": "deidentification",
    "indexing": "indexing",
    "export": "export",
    "console": "console",
}
"""A service's name in the registry of topics to its identity; the former is also its consumer group and starts its transactional ids."""

S3_RIGHTS: Mapping[str, Mapping[str, str]] = {
    "receiver": {"identifiable": "rwl"},
    "stow": {"identifiable": "rw"},
    "assembler": {"identifiable": "w"},
    "closer": {"identifiable": "rwl"},
    "commitment": {"identifiable": "rwl"},
    "gate": {"identifiable": "rwl"},
    "deidentification": {"identifiable": "rwl", "research": "rwl"},
    "indexing": {"research": "rwl"},
    "export": {"research": "rwl", **dict.fromkeys(DATASETS, "rwl")},
    "console": dict.fromkeys(BUCKETS, "rl"),
    "training-consumer": {"datasets-training": "rl"},
    "validation-consumer": {"datasets-validation": "rl"},
    ADMIN: dict.fromkeys(BUCKETS, "rwl"),
}
"""Identity to bucket to rights: r reads, w writes and deletes, l lists. What is not here is refused. Indexing writes dead letters, and
lists because S3 tells a missing object from a forbidden one only to those who may list. The assembler writes dead letters only."""

ROUTER_TOPIC = "identifiable.instance.received"
"""All that a trust's router may write on the broker. In the store it writes below `<trust>/` of the bucket identifiable; it reads nothing."""


def router_identity(trust: str) -> str:
    """The name of a trust's router among the identities."""
    return f"router-{trust}"


def trust_of(identity: str) -> str | None:
    """The trust whose router this is, None for the hub's own and for consumers."""
    return identity.removeprefix("router-") if identity.startswith("router-") else None


DATABASE_ROLES = ("indexing", "export", "console")


@dataclass(frozen=True)
class Credentials:
    """The names and passwords of one data folder."""

    s3: Mapping[str, Mapping[str, str]]
    """Identity to `access_key` and `secret_key`."""
    kafka: Mapping[str, Mapping[str, str]]
    """Identity to `username` and `password`."""
    database: Mapping[str, str]
    """Identity to password."""

    @classmethod
    def load_or_make(cls, path: Path, routers: Collection[str] = ()) -> "Credentials":
        """Those of the file, completed by new ones for identities that it lacks, and written back when any were made.

        `routers`: trusts with a router of their own; routers of others lose theirs.
        """
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        kept = {part: dict(kept.get(part, {})) for part in ("s3", "kafka", "database")}
        before = json.dumps(kept)
        wanted = (*IDENTITIES, *map(router_identity, routers))
        for part in ("s3", "kafka"):
            kept[part] = {name: one for name, one in kept[part].items() if name in wanted}
        for name in wanted:
            kept["s3"].setdefault(name, {"access_key": f"hub-{name}", "secret_key": secrets.token_hex(20)})
            kept["kafka"].setdefault(name, {"username": name, "password": secrets.token_hex(20)})
        for name in (*DATABASE_ROLES, ADMIN):
            kept["database"].setdefault(name, secrets.token_hex(20))
        if json.dumps(kept) != before:
            write_private(path, json.dumps(kept, indent=1))
        return cls(**kept)
