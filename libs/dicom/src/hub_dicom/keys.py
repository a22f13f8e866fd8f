"""Where things stand in the bucket `identifiable`. No text of an error names a key: keys hold UIDs."""

import re
from dataclasses import dataclass
from typing import Final

from hub_dicom.uid import is_uid

RESERVED: Final = frozenset(
    {"manifests", "quarantine", "dead-letters", "attempts", "instances", "announced", "commitments", "commitments-done"}
)
"""First levels of keys that no trust may be named."""

TRUST_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,30}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_STAGE: Final = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class InstanceKey:
    """The parts of an instance's key."""

    trust: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sha256: str
    """Of the whole object, Part 10 header included."""


def instance_key(trust: str, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str, sha256: str) -> str:
    """`<trust>/<study>/<series>/<instance>/<sha256>`: the same bytes are the same object, others stand beside it.

    Raises:
        ValueError: a part is not what it should be.
    """
    if not _SHA256.fullmatch(sha256):
        raise ValueError("the digest of an instance's key must be a SHA-256 in lower-case hexadecimal")
    if not is_uid(series_instance_uid) or not is_uid(sop_instance_uid):
        raise ValueError("an instance's key needs valid UIDs")
    return f"{study_prefix(trust, study_instance_uid)}{series_instance_uid}/{sop_instance_uid}/{sha256}"


def parse_instance_key(key: str) -> InstanceKey:
    """The parts of an instance's key.

    Raises:
        ValueError: it is not the key of an instance.
    """
    parts = key.split("/")
    if len(parts) != 5:
        raise ValueError(f"an instance's key has 5 parts, this one {len(parts)}")
    parsed = InstanceKey(*parts)
    if instance_key(*parts) != key:
        raise ValueError("not the key of an instance")
    return parsed


def trust_prefix(trust: str) -> str:
    """What the keys of all instances of a trust start with.

    Raises:
        ValueError: no trust can be named so.
    """
    if not TRUST_NAME.fullmatch(trust) or trust in RESERVED:
        raise ValueError("a trust's name is lower-case letters, digits and hyphens, at most 31, and no reserved first level")
    return f"{trust}/"


def study_prefix(trust: str, study_instance_uid: str) -> str:
    """What the keys of all instances of a study from a trust start with.

    Raises:
        ValueError: a part is not what it should be.
    """
    if not is_uid(study_instance_uid):
        raise ValueError("a study's keys need a valid UID")
    return f"{trust_prefix(trust)}{study_instance_uid}/"


def manifest_key(trust: str, study_instance_uid: str, revision: int) -> str:
    """The key of the manifest of a study's revision."""
    if revision < 1:
        raise ValueError("revisions count from 1")
    return f"{manifest_prefix(trust, study_instance_uid)}{revision}.json"


def manifest_prefix(trust: str, study_instance_uid: str) -> str:
    """What the keys of all manifests of a study from a trust start with."""
    return f"manifests/{study_prefix(trust, study_instance_uid)}"


def variants_key(trust: str, study_instance_uid: str, revision: int) -> str:
    """The key of the record of what the variants of a study's revision are; beside its manifest, whose number it bears."""
    return manifest_key(trust, study_instance_uid, revision).removesuffix(".json") + "-variants.json"


def quarantine_key(trust: str, study_instance_uid: str, revision: int, stage: str) -> str:
    """The key of the report of what a stage held back of a revision."""
    if revision < 1 or not _STAGE.fullmatch(stage):
        raise ValueError("a quarantine report needs a revision from 1 and a stage's name")
    return f"quarantine/{study_prefix(trust, study_instance_uid)}{revision}-{stage}.json"
