"""The deidentification service: consume → load → de-identify → store → announce.

`handle` is the message path. It runs in a child process, because a file from outside may cost a process its life or its memory.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from hub_dicom import StudyManifest, Trusts, UnusableTrusts
from hub_events import Event
from hub_events.types import ObjectReference, QuarantineReason, StudyDeidentified, StudyQuarantined, StudyReceived
from hub_objectstore import ObjectMissing, ObjectStore
from hub_runtime import BadKeyRing, ChildProcess, KeyRing, Service, StopProcess, logger, open_store, run_consumer, run_service
from hub_runtime.errors import GiveUp
from pydantic import BaseModel, ValidationError

from hub_deidentification.identity import PURPOSES, Pseudonyms
from hub_deidentification.profile import Profile, load_profile
from hub_deidentification.rules import UnusableRules
from hub_deidentification.settings import DeidentificationSettings
from hub_deidentification.study import STAGE, Deidentification, Result, Stored

NAME: Final = "deidentification"
RECEIVED: Final = "identifiable.study.received"
QUARANTINED: Final = "identifiable.study.quarantined"
DEIDENTIFIED: Final = "research.study.deidentified"
_EXIT_SETTINGS: Final = 78

log = logger()


def handle(
    received: Event[StudyReceived], *, store: ObjectStore, trusts: Trusts, deidentification: Deidentification
) -> list[Event[BaseModel]]:
    """De-identify the revision that the event announces. A repeat makes the same objects and says the same.

    Returns `research.study.deidentified`, always; `identifiable.study.quarantined` too when anything is held back.

    Raises:
        GiveUp: the trust is unknown, or manifest or instances are missing or not what event and manifest say.
        StoreUnavailable: the store is away.
    """
    trust = trusts.by_name(received.data.trust)
    if trust is None:
        raise GiveUp("unknown-trust", "trusts.yaml has no entry for the trust that the event names")
    manifest = load_manifest(store, received.data)
    result = deidentification.study(manifest, trust)
    log.info(
        "study de-identified",
        trust=trust.name,
        revision=manifest.revision,
        instances=len(result.manifest.instances),
        count=sum(result.held_back.values()),
        variants=sum(result.variants.values()),
        reason=",".join(sorted(result.held_back)),
    )
    return announcements(received, manifest, result)


def load_manifest(store: ObjectStore, study: StudyReceived) -> StudyManifest:
    """The manifest that the event refers to.

    Raises:
        GiveUp: it is missing, has another digest, or is of something else.
        StoreUnavailable: the store is away.
    """
    try:
        body = store.get(study.manifest.bucket, study.manifest.key)
    except ObjectMissing:
        raise GiveUp("manifest-missing", "the event refers to a manifest that is not in the store") from None
    if hashlib.sha256(body).hexdigest() != study.manifest.sha256:
        raise GiveUp("manifest-digest", "the manifest is not the one that the event refers to")
    try:
        manifest = StudyManifest.model_validate_json(body)
    except ValidationError:
        raise GiveUp("manifest-unreadable", "the manifest is not one") from None
    said = (study.trust, study.study_instance_uid, study.revision, study.digest)
    if (manifest.trust, manifest.study_instance_uid, manifest.revision, manifest.digest) != said:
        raise GiveUp("manifest-of-another", "the manifest is of another revision than the event")
    return manifest


def announcements(received: Event[StudyReceived], manifest: StudyManifest, result: Result) -> list[Event[BaseModel]]:
    """The events that say what became of a revision."""
    research = result.manifest
    deidentified = StudyDeidentified(
        research_study_uid=research.research_study_uid,
        source=research.source,
        subject=research.subject,
        revision=research.revision,
        instances=len(research.instances),
        held_back=result.instances_held_back,
        profile=research.profile,
        key_version=research.key_version,
        manifest=_reference(result.manifest_object),
    )
    events = [received.follow(DEIDENTIFIED, research.research_study_uid, deidentified, source=NAME)]
    if result.report_object is not None:
        quarantined = StudyQuarantined(
            trust=manifest.trust,
            study_instance_uid=manifest.study_instance_uid,
            revision=manifest.revision,
            stage=STAGE,
            scope="instances" if research.instances else "study",
            reasons=[QuarantineReason(code=code, instances=count) for code, count in sorted(result.held_back.items())],
            report=_reference(result.report_object),
        )
        events.append(received.follow(QUARANTINED, manifest.study_instance_uid, quarantined, source=NAME))
    return events


def make_handler(settings: DeidentificationSettings) -> Callable[[Event[Any]], list[Event[BaseModel]]]:
    """The handler of one child process, with all that it needs.

    Raises:
        StopProcess: keys, trusts or profile cannot be used; the text says what to do.
    """
    keys, trusts, profile = load_parts(settings)
    store = open_store(settings)
    deidentification = Deidentification(
        store,
        Pseudonyms(keys),
        profile,
        threads=settings.deidentification_threads,
        memory_bytes=settings.deidentification_memory_mib * 2**20,
    )
    return lambda event: handle(event, store=store, trusts=trusts, deidentification=deidentification)


def load_parts(settings: DeidentificationSettings) -> tuple[KeyRing, Trusts, Profile]:
    """Keys, trusts and profile, each checked.

    Raises:
        StopProcess: one of them cannot be used; the text says what to do.
    """
    text = settings.deidentification_keys
    if (settings.deidentification_keys_file is None) == (text is None):
        raise StopProcess(
            "no key ring, or two: set HUB_DEIDENTIFICATION_KEYS_FILE to its file, or HUB_DEIDENTIFICATION_KEYS to its JSON", _EXIT_SETTINGS
        )
    try:
        keys = KeyRing.load(settings.deidentification_keys_file, None if text is None else text.get_secret_value())
        trusts = Trusts.load(settings.trusts_file)
        profile = load_profile(settings.deidentification_profile)
    except (BadKeyRing, UnusableTrusts, UnusableRules) as error:
        raise StopProcess(str(error), _EXIT_SETTINGS) from error
    missing = sorted(set(PURPOSES) - set(keys.keys))
    if missing:
        raise StopProcess(f"the key ring has no key for {', '.join(missing)}: add 64 random hexadecimal digits for each", _EXIT_SETTINGS)
    return keys, trusts, profile


def main() -> None:
    """Run the service until SIGTERM."""
    run_service(NAME, DeidentificationSettings, serve)


def serve(service: Service[DeidentificationSettings]) -> None:
    """Handle what is announced until the service stops.

    Raises:
        StopProcess: keys, trusts or profile cannot be used.
    """
    # Here too, before anything is consumed: a child's complaint would only be heard when the first study comes.
    _, _, profile = load_parts(service.settings)
    log.info("profile compiled", profile=profile.identity)
    run_consumer(
        service,
        group=NAME,
        topics=[RECEIVED],
        handle=ChildProcess("hub_deidentification.service:make_handler"),
        store=open_store(service.settings),
        concurrency=service.settings.deidentification_studies,
    )


def _reference(stored: Stored) -> ObjectReference:
    return ObjectReference(**asdict(stored))
