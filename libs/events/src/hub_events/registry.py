# Made from schemas/ by tools/generate_events.py; do not edit, run `make schemas`.
"""Every topic of the hub: see schemas/asyncapi.yaml."""

from hub_events import types
from hub_events.topic import Topic

TOPICS: dict[str, Topic] = {
    "identifiable.instance.received": Topic(
        name="identifiable.instance.received",
        types={
            "hub.instance.received.v1": types.InstanceReceived,
            "hub.study.tick.v1": types.StudyTick,
        },
        partitions=12,
        cleanup_policy="delete",
        retention_ms=604800000,
        made_by=("ingest.assembler", "ingest.closer", "ingest.gate", "ingest.receiver", "ingest.stow"),
        read_by=("ingest.assembler", "ingest.commitment", "ingest.gate"),
        broker_settings={"message.timestamp.type": "LogAppendTime"},
    ),
    "identifiable.instance.received.dlq": Topic(
        name="identifiable.instance.received.dlq",
        types={
            "hub.dead-letter.v1": types.DeadLettered,
        },
        partitions=3,
        cleanup_policy="delete",
        retention_ms=604800000,
        made_by=("ingest.assembler", "ingest.commitment", "ingest.gate"),
        read_by=("console",),
    ),
    "identifiable.ingest.assembler-studies-changelog": Topic(
        name="identifiable.ingest.assembler-studies-changelog",
        types={},
        partitions=12,
        cleanup_policy="compact,delete",
        retention_ms=604800000,
        made_by=("ingest.assembler",),
        read_by=(),
        broker_settings={"segment.bytes": "1048576", "min.cleanable.dirty.ratio": "0.1"},
    ),
    "identifiable.study.quiet": Topic(
        name="identifiable.study.quiet",
        types={
            "hub.study.quiet.v1": types.StudyQuiet,
        },
        partitions=12,
        cleanup_policy="delete",
        retention_ms=604800000,
        made_by=("ingest.assembler",),
        read_by=("ingest.closer",),
    ),
    "identifiable.study.quiet.dlq": Topic(
        name="identifiable.study.quiet.dlq",
        types={
            "hub.dead-letter.v1": types.DeadLettered,
        },
        partitions=3,
        cleanup_policy="delete",
        retention_ms=604800000,
        made_by=("ingest.closer",),
        read_by=("console",),
    ),
    "identifiable.study.received": Topic(
        name="identifiable.study.received",
        types={
            "hub.study.received.v1": types.StudyReceived,
        },
        partitions=12,
        cleanup_policy="delete",
        retention_ms=604800000,
        made_by=("ingest.closer",),
        read_by=("deidentification",),
    ),
    "identifiable.study.received.dlq": Topic(
        name="identifiable.study.received.dlq",
        types={
            "hub.dead-letter.v1": types.DeadLettered,
        },
        partitions=3,
        cleanup_policy="delete",
        retention_ms=604800000,
        made_by=("deidentification",),
        read_by=("console",),
    ),
    "identifiable.study.quarantined": Topic(
        name="identifiable.study.quarantined",
        types={
            "hub.study.quarantined.v1": types.StudyQuarantined,
        },
        partitions=12,
        cleanup_policy="delete",
        retention_ms=604800000,
        made_by=("deidentification", "ingest.closer"),
        read_by=("console",),
    ),
    "research.study.deidentified": Topic(
        name="research.study.deidentified",
        types={
            "hub.study.deidentified.v1": types.StudyDeidentified,
        },
        partitions=12,
        cleanup_policy="delete",
        retention_ms=31536000000,
        made_by=("deidentification",),
        read_by=("indexing",),
    ),
    "research.study.deidentified.dlq": Topic(
        name="research.study.deidentified.dlq",
        types={
            "hub.dead-letter.v1": types.DeadLettered,
        },
        partitions=3,
        cleanup_policy="delete",
        retention_ms=31536000000,
        made_by=("indexing",),
        read_by=("console",),
    ),
    "research.study.indexed": Topic(
        name="research.study.indexed",
        types={
            "hub.study.indexed.v1": types.StudyIndexed,
        },
        partitions=12,
        cleanup_policy="delete",
        retention_ms=31536000000,
        made_by=("indexing",),
        read_by=("console",),
    ),
    "research.dataset.requested": Topic(
        name="research.dataset.requested",
        types={
            "hub.dataset.requested.v1": types.DatasetRequested,
        },
        partitions=3,
        cleanup_policy="delete",
        retention_ms=31536000000,
        made_by=("console",),
        read_by=("export",),
    ),
    "research.dataset.requested.dlq": Topic(
        name="research.dataset.requested.dlq",
        types={
            "hub.dead-letter.v1": types.DeadLettered,
        },
        partitions=3,
        cleanup_policy="delete",
        retention_ms=31536000000,
        made_by=("export",),
        read_by=("console",),
    ),
    "research.dataset.exported": Topic(
        name="research.dataset.exported",
        types={
            "hub.dataset.exported.v1": types.DatasetExported,
        },
        partitions=3,
        cleanup_policy="delete",
        retention_ms=31536000000,
        made_by=("export",),
        read_by=("console",),
    ),
}
