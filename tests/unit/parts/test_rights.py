"""Who may do what, before any part is asked."""

from confluent_kafka.admin import AclOperation, AclPermissionType, ResourcePatternType, ResourceType  # type: ignore[attr-defined]  # documented
from hub_events import TOPICS
from hub_parts.access import rules
from hub_parts.credentials import ADMIN, BUCKETS, CONSUMERS, DATASETS, IDENTITIES, REGISTRY_NAMES, S3_RIGHTS, SERVICES, Credentials
from hub_parts.minio_server import policy
from hub_parts.seaweedfs import identities

KEYS = {name: {"access_key": f"key-{name}", "secret_key": f"secret-{name}"} for name in IDENTITIES}


def may(identity: str, operation: AclOperation, topic: str) -> bool:
    """What the broker's authorizer would say: a matching denial wins, then a matching permission, else no."""
    matching = [
        one
        for one in rules()
        if one.principal == f"User:{identity}"
        and one.restype == ResourceType.TOPIC
        and one.operation == operation
        and (one.name == topic if one.resource_pattern_type == ResourcePatternType.LITERAL else topic.startswith(one.name))
    ]
    return bool(matching) and all(one.permission_type == AclPermissionType.ALLOW for one in matching)


def test_every_service_of_the_registry_has_an_identity() -> None:
    named = {name for topic in TOPICS.values() for name in (*topic.made_by, *topic.read_by)}
    assert named <= set(REGISTRY_NAMES)
    assert set(REGISTRY_NAMES.values()) == set(SERVICES)


def test_topics_are_written_and_read_by_whom_the_registry_names() -> None:
    for topic in TOPICS.values():
        makers, readers = ({REGISTRY_NAMES[name] for name in names} for names in (topic.made_by, topic.read_by))
        own = {"assembler"} if topic.name.startswith("identifiable.ingest.assembler") else set()
        assert {one for one in IDENTITIES if may(one, AclOperation.WRITE, topic.name)} == makers | own
        consumers = {one for one in CONSUMERS if may(one, AclOperation.READ, topic.name)}
        assert {one for one in IDENTITIES if may(one, AclOperation.READ, topic.name)} == readers | own | {"console"} | consumers
        assert not consumers or topic.zone == "research"


def test_consumers_are_denied_the_identifiable_zone_even_if_a_wider_rule_is_made() -> None:
    denials = {
        (one.principal, one.name) for one in rules() if one.permission_type == AclPermissionType.DENY and one.operation == AclOperation.READ
    }
    assert denials == {(f"User:{name}", "identifiable.") for name in CONSUMERS}


def test_a_transactional_id_belongs_to_one_service() -> None:
    prefixes = [(one.principal, one.name) for one in rules() if one.restype == ResourceType.TRANSACTIONAL_ID]
    assert {principal.removeprefix("User:") for principal, _ in prefixes} == set(SERVICES)
    names = sorted({name for _, name in prefixes})
    assert not [(one, other) for one in names for other in names if one != other and other.startswith(one)]


def test_a_consumer_of_the_training_set_has_no_right_to_the_validation_set() -> None:
    assert S3_RIGHTS["training-consumer"] == {"datasets-training": "rl"}
    assert S3_RIGHTS["validation-consumer"] == {"datasets-validation": "rl"}


def test_only_ingest_and_deidentification_write_or_read_the_identifiable_zone() -> None:
    assert {name for name, rights in S3_RIGHTS.items() if "r" in rights.get("identifiable", "")} == {
        "receiver",
        "stow",
        "closer",
        "commitment",
        "gate",
        "deidentification",
        "console",
        ADMIN,
    }
    assert {name for name, rights in S3_RIGHTS.items() if "w" in rights.get("identifiable", "")} == {
        "receiver",
        "stow",
        "assembler",
        "closer",
        "commitment",
        "gate",
        "deidentification",
        ADMIN,
    }


def test_seaweedfs_and_minio_are_told_the_same() -> None:
    told = identities(Credentials(s3=KEYS, kafka={}, database={}))["identities"]
    assert isinstance(told, list)
    for entry in told:
        name = entry["name"]
        if name == ADMIN:
            continue
        statements = policy(name)["Statement"]
        assert isinstance(statements, list)
        allowed = {(action, resource) for one in statements for action in one["Action"] for resource in one["Resource"]}
        for bucket in (*BUCKETS, *DATASETS):
            here, there = f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"
            pairs = {"Read": ("s3:GetObject", there), "Write": ("s3:PutObject", there), "List": ("s3:ListBucket", here)}
            for action, pair in pairs.items():
                assert (f"{action}:{bucket}" in entry["actions"]) == (pair in allowed), (name, bucket, action)
        assert not [action for action in entry["actions"] if ":" not in action], "no right without a bucket"
