"""Who may do what on the broker: rules made from the registry of topics."""

from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # documented, but not marked as exported
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from hub_events import TOPICS, Topic

from hub_parts.credentials import CONSUMERS, REGISTRY_NAMES, ROUTER_TOPIC, router_identity

CONSUMERS_READ = ("research.study.indexed", "research.dataset.exported")
"""What those outside the hub may read. `identifiable.` is denied to them besides, so that no wider rule can give it by mistake."""

LITERAL, PREFIXED = ResourcePatternType.LITERAL, ResourcePatternType.PREFIXED
ALLOW, DENY = AclPermissionType.ALLOW, AclPermissionType.DENY


def rules(topics: Mapping[str, Topic] = TOPICS, routers: Iterable[str] = ()) -> list[AclBinding]:
    """Every rule of the hub; what no rule allows is refused, and `admin` needs none. `routers`: trusts with a router of their own."""
    made: list[AclBinding] = []

    def rule(
        identity: str,
        kind: ResourceType,
        name: str,
        pattern: ResourcePatternType,
        *operations: AclOperation,
        permission: AclPermissionType = ALLOW,
    ) -> None:
        made.extend(AclBinding(kind, name, pattern, f"User:{identity}", "*", operation, permission) for operation in operations)

    topic, group, transaction = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID
    read, write, describe = AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE
    for one in topics.values():
        for name in one.made_by:
            rule(REGISTRY_NAMES[name], topic, one.name, LITERAL, write)
        for name in one.read_by:
            rule(REGISTRY_NAMES[name], topic, one.name, LITERAL, read)
    for name, identity in REGISTRY_NAMES.items():
        rule(identity, group, name, PREFIXED, read)
        rule(identity, transaction, name, PREFIXED, write)
    # faust keeps its table and its leader's mark in topics that it makes itself.
    operations = (read, write, AclOperation.CREATE, AclOperation.DELETE, AclOperation.DESCRIBE_CONFIGS, AclOperation.ALTER_CONFIGS)
    for prefix in ("ingest.assembler", "identifiable.ingest.assembler"):
        rule("assembler", topic, prefix, PREFIXED, *operations)
    # The console follows a study through every topic and shows how far each service is.
    for zone in sorted({one.zone for one in topics.values()}):
        rule("console", topic, f"{zone}.", PREFIXED, read)
    rule("console", group, "*", LITERAL, describe)
    for identity in CONSUMERS:
        for name in CONSUMERS_READ:
            rule(identity, topic, name, LITERAL, read)
        rule(identity, group, identity, PREFIXED, read)
        rule(identity, topic, "identifiable.", PREFIXED, read, describe, permission=DENY)
    for trust in routers:
        rule(router_identity(trust), topic, ROUTER_TOPIC, LITERAL, write)
    return made


def apply_rules(config: Mapping[str, Any], wanted: Iterable[AclBinding] | None = None) -> None:
    """Make the broker's rules these and no others; `config` is that of the administrator.

    Raises:
        KafkaException: The broker refuses or does not answer.
    """
    admin = AdminClient(dict(config))
    wanted = set(rules() if wanted is None else wanted)
    anything: Any = None  # the client's annotations forget that a filter may leave these open
    any_rule = AclBindingFilter(
        ResourceType.ANY, anything, ResourcePatternType.ANY, anything, anything, AclOperation.ANY, AclPermissionType.ANY
    )
    there = set(admin.describe_acls(any_rule, request_timeout=15).result())
    if wanted - there:
        for made in admin.create_acls(list(wanted - there), request_timeout=15).values():
            made.result()
    if there - wanted:
        outdated = [
            AclBindingFilter(one.restype, one.name, one.resource_pattern_type, one.principal, one.host, one.operation, one.permission_type)
            for one in there - wanted
        ]
        for gone in admin.delete_acls(outdated, request_timeout=15).values():
            gone.result()
