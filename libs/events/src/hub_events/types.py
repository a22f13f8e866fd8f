# Made from schemas/ by tools/generate_events.py; do not edit, run `make schemas`.
"""What the events carry: see schemas/events."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, RootModel


class QuarantineReason(BaseModel):
    """
    How many instances were held back for one reason.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    code: Annotated[
        str,
        Field(
            description="Why something was held back; the service's README lists its codes.",
            pattern="^[a-z0-9]+(-[a-z0-9]+)*$",
        ),
    ]
    instances: Annotated[int, Field(ge=1)]


class ObjectReference(BaseModel):
    """
    An object in the store, by place and content.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    bucket: Annotated[str, Field(max_length=63, min_length=3)]
    key: Annotated[str, Field(max_length=1024, min_length=1)]
    sha256: Annotated[
        str,
        Field(
            description="SHA-256 in lower-case hexadecimal.", pattern="^[0-9a-f]{64}$"
        ),
    ]
    size: Annotated[int, Field(description="Bytes.", ge=0)]


class DatasetRequested(BaseModel):
    """
    Somebody wants a dataset: the next version of its name.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    dataset: Annotated[
        str, Field(description="A dataset's name.", pattern="^[a-z0-9][a-z0-9-]{0,62}$")
    ]
    where: Annotated[
        list[str],
        Field(
            description="Conditions that all must hold, KEYWORD=VALUE with the matching of PS3.4 C.2.2.2."
        ),
    ]
    training_percent: Annotated[int, Field(ge=0, le=100)]


class DeadLettered(BaseModel):
    """
    A record that its reader could not handle. Its bytes are an object in its zone; nothing of them is here.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    topic: str
    partition: Annotated[int, Field(ge=0)]
    offset: Annotated[int, Field(ge=0)]
    group: Annotated[str, Field(description="The consumer group that gave it up.")]
    reason: Annotated[
        str,
        Field(
            description="Why something was held back; the service's README lists its codes.",
            pattern="^[a-z0-9]+(-[a-z0-9]+)*$",
        ),
    ]
    error: Annotated[
        str, Field(description="The kind of the error, never its data.", max_length=200)
    ]
    attempts: Annotated[int, Field(ge=1)]
    object: ObjectReference


class InstanceReceived(BaseModel):
    """
    An instance is durable in the object store. Made once per acknowledged C-STORE, or by the sweep for an object that has no event.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    trust: Annotated[
        str,
        Field(
            description="The sending trust, by its name in trusts.yaml.",
            pattern="^[a-z][a-z0-9-]{0,30}$",
        ),
    ]
    study_instance_uid: Annotated[
        str,
        Field(
            description="A DICOM unique identifier (PS3.5 9.1). Components with leading zeros are invalid but sent by real archives, so they pass.",
            max_length=64,
            pattern="^[0-9]+(\\.[0-9]+)*$",
        ),
    ]
    series_instance_uid: Annotated[
        str,
        Field(
            description="A DICOM unique identifier (PS3.5 9.1). Components with leading zeros are invalid but sent by real archives, so they pass.",
            max_length=64,
            pattern="^[0-9]+(\\.[0-9]+)*$",
        ),
    ]
    sop_instance_uid: Annotated[
        str,
        Field(
            description="A DICOM unique identifier (PS3.5 9.1). Components with leading zeros are invalid but sent by real archives, so they pass.",
            max_length=64,
            pattern="^[0-9]+(\\.[0-9]+)*$",
        ),
    ]
    sop_class_uid: Annotated[
        str | None,
        Field(
            description="Absent when the sweep announces the object: it reads keys, not contents.",
            max_length=64,
            pattern="^[0-9]+(\\.[0-9]+)*$",
        ),
    ] = None
    transfer_syntax_uid: Annotated[
        str | None,
        Field(
            description="A DICOM unique identifier (PS3.5 9.1). Components with leading zeros are invalid but sent by real archives, so they pass.",
            max_length=64,
            pattern="^[0-9]+(\\.[0-9]+)*$",
        ),
    ] = None
    object: ObjectReference
    expected_instances: Annotated[
        int | None,
        Field(
            description="How many instances the study has where it comes from, if whoever announces knows. With so many arrivals it is not waited for longer; it promises nothing.",
            ge=1,
        ),
    ] = None
    origin: Annotated[
        Literal["c-store", "stow-rs", "router", "sweep"],
        Field(description="Which way the instance came."),
    ]


class StudyDeidentified(BaseModel):
    """
    A revision of a study is de-identified in the research zone.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    research_study_uid: Annotated[
        str,
        Field(
            description="A DICOM unique identifier (PS3.5 9.1). Components with leading zeros are invalid but sent by real archives, so they pass.",
            max_length=64,
            pattern="^[0-9]+(\\.[0-9]+)*$",
        ),
    ]
    source: Annotated[
        str,
        Field(
            description="The sending trust under a pseudonym: a keyed hash of its name, the same for all its studies.",
            pattern="^[a-z0-9]{4,32}$",
        ),
    ]
    subject: Annotated[
        str | None,
        Field(
            description="The research subject: a keyed hash. Null when nothing of the revision could be released.",
            pattern="^[A-Za-z0-9]{8,64}$",
        ),
    ]
    revision: Annotated[
        int,
        Field(
            description="Number of the study's revision at this trust, from 1; a higher one replaces a lower one.",
            ge=1,
        ),
    ]
    instances: Annotated[int, Field(ge=0)]
    held_back: Annotated[
        int,
        Field(description="Instances of the revision that are in quarantine.", ge=0),
    ]
    profile: Annotated[
        str,
        Field(
            description="Name and digest of the profile.", max_length=100, min_length=1
        ),
    ]
    key_version: Annotated[int, Field(ge=1)]
    manifest: ObjectReference


class StudyIndexed(BaseModel):
    """
    A revision of a research study can be found in the index.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    research_study_uid: Annotated[
        str,
        Field(
            description="A DICOM unique identifier (PS3.5 9.1). Components with leading zeros are invalid but sent by real archives, so they pass.",
            max_length=64,
            pattern="^[0-9]+(\\.[0-9]+)*$",
        ),
    ]
    source: Annotated[
        str,
        Field(
            description="The sending trust under a pseudonym: a keyed hash of its name, the same for all its studies.",
            pattern="^[a-z0-9]{4,32}$",
        ),
    ]
    subject: Annotated[
        str | None,
        Field(
            description="The research subject: a keyed hash. Null when nothing of the revision could be released.",
            pattern="^[A-Za-z0-9]{8,64}$",
        ),
    ]
    revision: Annotated[
        int,
        Field(
            description="Number of the study's revision at this trust, from 1; a higher one replaces a lower one.",
            ge=1,
        ),
    ]
    instances: Annotated[int, Field(ge=0)]
    modalities: list[str]
    manifest: ObjectReference


class StudyQuarantined(BaseModel):
    """
    A study, or some of its instances, is held back for a reason. Nothing is dropped: the objects stay in the identifiable zone.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    trust: Annotated[
        str,
        Field(
            description="The sending trust, by its name in trusts.yaml.",
            pattern="^[a-z][a-z0-9-]{0,30}$",
        ),
    ]
    study_instance_uid: Annotated[
        str,
        Field(
            description="A DICOM unique identifier (PS3.5 9.1). Components with leading zeros are invalid but sent by real archives, so they pass.",
            max_length=64,
            pattern="^[0-9]+(\\.[0-9]+)*$",
        ),
    ]
    revision: Annotated[
        int,
        Field(
            description="Number of the study's revision at this trust, from 1; a higher one replaces a lower one.",
            ge=1,
        ),
    ]
    stage: Annotated[
        Literal["ingest", "deidentification", "indexing", "export"],
        Field(description="Which stage held it back."),
    ]
    scope: Annotated[
        Literal["study", "instances"],
        Field(
            description="Whether all of it is held back or only the instances that the report names."
        ),
    ]
    reasons: Annotated[list[QuarantineReason], Field(min_length=1)]
    report: Annotated[
        ObjectReference,
        Field(description="Which instance was held back for which reason."),
    ]


class StudyQuiet(BaseModel):
    """
    No instance of the study has come from this trust for the trust's quiet time, or the study has gone on for longer than the limit.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    trust: Annotated[
        str,
        Field(
            description="The sending trust, by its name in trusts.yaml.",
            pattern="^[a-z][a-z0-9-]{0,30}$",
        ),
    ]
    study_instance_uid: Annotated[
        str,
        Field(
            description="A DICOM unique identifier (PS3.5 9.1). Components with leading zeros are invalid but sent by real archives, so they pass.",
            max_length=64,
            pattern="^[0-9]+(\\.[0-9]+)*$",
        ),
    ]
    instances: Annotated[
        int,
        Field(
            description="Arrivals since the study was last quiet, repeats included: a hint, never the truth.",
            ge=0,
        ),
    ]
    last_seen: Annotated[
        AwareDatetime,
        Field(description="When the last of them was acknowledged by the broker."),
    ]


class StudyReceived(BaseModel):
    """
    What the store holds of a study is a numbered revision with a manifest.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    trust: Annotated[
        str,
        Field(
            description="The sending trust, by its name in trusts.yaml.",
            pattern="^[a-z][a-z0-9-]{0,30}$",
        ),
    ]
    study_instance_uid: Annotated[
        str,
        Field(
            description="A DICOM unique identifier (PS3.5 9.1). Components with leading zeros are invalid but sent by real archives, so they pass.",
            max_length=64,
            pattern="^[0-9]+(\\.[0-9]+)*$",
        ),
    ]
    revision: Annotated[
        int,
        Field(
            description="Number of the study's revision at this trust, from 1; a higher one replaces a lower one.",
            ge=1,
        ),
    ]
    instances: Annotated[
        int, Field(description="SOP instances, variants not counted.", ge=1)
    ]
    variants: Annotated[
        int, Field(description="Further contents under the UID of an instance.", ge=0)
    ]
    bytes: Annotated[int, Field(ge=0)]
    digest: Annotated[
        str,
        Field(
            description="The revision's identity: SHA-256 over the sorted digests of its objects.",
            pattern="^[0-9a-f]{64}$",
        ),
    ]
    manifest: ObjectReference


class StudyTick(BaseModel):
    """
    The assembler's own clock: a look at one study, sent through the partition of its instances so that it cannot overtake them.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    trust: Annotated[
        str,
        Field(
            description="The sending trust, by its name in trusts.yaml.",
            pattern="^[a-z][a-z0-9-]{0,30}$",
        ),
    ]
    study_instance_uid: Annotated[
        str,
        Field(
            description="A DICOM unique identifier (PS3.5 9.1). Components with leading zeros are invalid but sent by real archives, so they pass.",
            max_length=64,
            pattern="^[0-9]+(\\.[0-9]+)*$",
        ),
    ]


class DatasetPart(BaseModel):
    """
    What stands in one of a dataset's two buckets.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    subjects: Annotated[int, Field(ge=0)]
    studies: Annotated[int, Field(ge=0)]
    instances: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    manifest: ObjectReference


class DatasetExported(BaseModel):
    """
    A request for a dataset is answered: a version was made, or it was refused for a reason.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
    )
    dataset: Annotated[
        str, Field(description="A dataset's name.", pattern="^[a-z0-9][a-z0-9-]{0,62}$")
    ]
    request: Annotated[
        str,
        Field(
            description="The id of the event that asked for it.",
            max_length=64,
            min_length=1,
        ),
    ]
    outcome: Literal["exported", "refused"]
    reason: Annotated[
        str | None,
        Field(description="Why it was refused and what to do.", max_length=500),
    ] = None
    version: Annotated[int | None, Field(ge=1)] = None
    training: DatasetPart | None = None
    validation: DatasetPart | None = None


class AnyEvent(
    RootModel[
        DatasetExported
        | DatasetRequested
        | DeadLettered
        | InstanceReceived
        | StudyDeidentified
        | StudyIndexed
        | StudyQuarantined
        | StudyQuiet
        | StudyReceived
        | StudyTick
    ]
):
    model_config = ConfigDict(
        frozen=True,
    )
    root: Annotated[
        DatasetExported | DatasetRequested | DeadLettered | InstanceReceived | StudyDeidentified | StudyIndexed | StudyQuarantined | StudyQuiet | StudyReceived | StudyTick,
        Field(title="AnyEvent"),
    ]
