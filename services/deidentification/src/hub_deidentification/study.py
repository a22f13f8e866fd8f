"""One revision of a study: every instance read, checked, de-identified and stored, or held back with a reason.

Nothing here is visible to the research zone before the event that names the manifest is committed.
"""

import gzip
import hashlib
import io
import json
import mmap
import tempfile
import threading
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from hub_dicom import (
    ManifestInstance,
    MetadataReference,
    ResearchInstance,
    ResearchManifest,
    StudyManifest,
    Trust,
    quarantine_key,
    variants_key,
)
from hub_objectstore import ObjectMissing, ObjectStore
from hub_runtime.errors import GiveUp

from hub_deidentification import acceptance, engine, unwanted
from hub_deidentification.acceptance import Refused
from hub_deidentification.dicom_json import metadata_line
from hub_deidentification.encoding import Instance, Unparseable, read_instance
from hub_deidentification.identity import ConflictingPatients, Identity, NoPatientId, Pseudonyms, identity_of, one_person
from hub_deidentification.profile import Profile
from hub_deidentification.sameness import Comparison, Verdict, compare

IDENTIFIABLE: Final = "identifiable"
RESEARCH: Final = "research"
STAGE: Final = "deidentification"
CONFLICT: Final = "variant-conflict"

_Source = TypeVar("_Source")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one instance: `instance` and `line` when it is released, `reason` when it is held back."""

    entry: ManifestInstance
    reason: str | None
    identity: Identity | None = None
    subject: str | None = None
    instance: ResearchInstance | None = None
    line: bytes = b""
    """Its metadata, compressed: a study can have 20,000 of them."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An object that is in the store."""

    bucket: str
    key: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a revision."""

    manifest: ResearchManifest
    manifest_object: Stored
    held_back: Counter[str]
    """Instances by reason, conflicting variants included."""
    instances_held_back: int
    """Without variants."""
    variants: Counter[str]
    """Further contents of the instances, by verdict."""
    report_object: Stored | None


class Deidentification:
    """De-identifies studies with one profile and one key ring. Shared by nobody: one per process or test."""

    def __init__(
        self, store: ObjectStore, pseudonyms: Pseudonyms, profile: Profile, *, threads: int = 4, memory_bytes: int = 512 * 2**20
    ) -> None:
        """`threads`: instances at the same time, as long as their objects together fit into `memory_bytes`."""
        self._store = store
        self._pseudonyms = pseudonyms
        self._profile = profile
        self._threads = threads
        self._memory = _Budget(memory_bytes)

    def study(self, manifest: StudyManifest, trust: Trust) -> Result:
        """De-identify a revision; a repeat finds every object there and changes nothing.

        Raises:
            GiveUp: an object that the manifest names is not in the store, or is not what the manifest says.
            StoreUnavailable: the store is away.
        """
        research_study = self._pseudonyms.uid(manifest.study_instance_uid)
        source = self._pseudonyms.source(trust.name)
        prefix = f"{research_study}/{source}"

        def first(entry: ManifestInstance) -> Outcome:
            return self._instance(entry, manifest, trust, prefix, None)

        outcomes = list(_in_order(first, manifest.instances, self._threads))
        subject, outcomes = self._of_one_person(outcomes, manifest, trust, prefix)
        variants = self._variants(manifest)
        conflicts = {entry.key: verdict for entry, verdict in variants if verdict.verdict is Verdict.CONFLICT}
        if trust.conflicts == "hold-back":
            outcomes = _without(outcomes, {entry.sop_instance_uid for entry, _ in variants if entry.key in conflicts})
        released = [outcome for outcome in outcomes if outcome.instance is not None]
        held_back = [outcome for outcome in outcomes if outcome.instance is None]
        held_back += [Outcome(entry, CONFLICT) for entry, _ in variants if entry.key in conflicts]
        stored, research = self._manifest(
            ResearchManifest(
                research_study_uid=research_study,
                subject=subject if released else None,
                source=source,
                revision=manifest.revision,
                profile=self._profile.identity,
                key_version=self._pseudonyms.key_version,
                instances=tuple(outcome.instance for outcome in released if outcome.instance is not None),
                metadata=None,
            ),
            [outcome.line for outcome in released],
            f"manifests/{prefix}",
        )
        return Result(
            manifest=research,
            manifest_object=stored,
            held_back=Counter(outcome.reason or "" for outcome in held_back),
            instances_held_back=len(outcomes) - len(released),
            variants=Counter(str(found.verdict) for _, found in variants),
            report_object=self._report(manifest, held_back, conflicts) if held_back else None,
        )

    def _of_one_person(
        self, outcomes: list[Outcome], manifest: StudyManifest, trust: Trust, prefix: str
    ) -> tuple[str | None, list[Outcome]]:
        identities = [outcome.identity for outcome in outcomes if outcome.identity is not None]
        conflict = any(outcome.reason == "conflicting-patients" for outcome in outcomes)
        try:
            subject = self._pseudonyms.subject(one_person(identities)) if identities else None
        except ConflictingPatients:
            conflict = True
        if conflict:
            return None, [
                replace(outcome, reason=outcome.reason or "conflicting-patients", instance=None, line=b"") for outcome in outcomes
            ]

        def again(outcome: Outcome) -> Outcome:
            # Another instance of the study named the person better: the dates must move as that person's do.
            if outcome.instance is None or outcome.subject == subject:
                return outcome
            return self._instance(outcome.entry, manifest, trust, prefix, subject)

        return subject, list(_in_order(again, outcomes, self._threads))

    def _instance(self, entry: ManifestInstance, manifest: StudyManifest, trust: Trust, prefix: str, subject: str | None) -> Outcome:
        with self._memory.taken(entry.size):
            file = self._load(entry)
            identity: Identity | None = None
            try:
                acceptance.check_file(file)
                source = read_instance(file)
                unwanted.check_patient(source, trust)
                identity, no_identity = _identity(source, trust)
                unwanted.check_kind(source, trust)
                acceptance.check(source, self._profile)
                acceptance.check_uids(source, manifest.study_instance_uid, entry.series_instance_uid, entry.sop_instance_uid)
                if identity is None:
                    return Outcome(entry, no_identity)
                subject = subject or self._pseudonyms.subject(identity)
                result = engine.deidentify(source, self._profile, self._pseudonyms, subject)
            except Refused as refusal:
                return Outcome(entry, refusal.reason, identity)
            except (Unparseable, RecursionError):
                return Outcome(entry, "cannot-be-parsed", identity)
            line = zlib.compress(metadata_line(result.instance), 1)
            return Outcome(entry, None, identity, subject, self._store_instance(entry, result, prefix, subject), line)

    def _variants(self, manifest: StudyManifest) -> list[tuple[ManifestInstance, Comparison]]:
        """What each variant is beside the instance that is used; recorded beside the manifest, because a copy is no alarm."""
        if not manifest.variants:
            return []
        chosen = {entry.sop_instance_uid: entry for entry in manifest.instances}

        def verdict(entry: ManifestInstance) -> Comparison:
            with self._mapped(chosen[entry.sop_instance_uid]) as first, self._mapped(entry) as second:
                return compare(first, second)

        found = list(zip(manifest.variants, (verdict(entry) for entry in manifest.variants), strict=True))
        content = {
            "trust": manifest.trust,
            "study_instance_uid": manifest.study_instance_uid,
            "revision": manifest.revision,
            "variants": [
                {
                    "key": entry.key,
                    "of": chosen[entry.sop_instance_uid].key,
                    "verdict": comparison.verdict,
                    "because": comparison.because,
                    "differs": comparison.differs,
                }
                for entry, comparison in found
            ],
        }
        body = json.dumps(content, indent=1).encode()
        key = variants_key(manifest.trust, manifest.study_instance_uid, manifest.revision)
        self._store.put(IDENTIFIABLE, key, body, sha256=hashlib.sha256(body).hexdigest(), content_type="application/json")
        return found

    @contextmanager
    def _mapped(self, entry: ManifestInstance) -> Iterator[memoryview]:
        """The object as memory that the kernel takes back when it needs it: a file that nobody else sees, mapped.

        Raises:
            GiveUp: it is missing, or not what the manifest says.
        """
        digest = hashlib.sha256()
        with tempfile.TemporaryFile() as file:
            try:
                with self._store.open(IDENTIFIABLE, entry.key) as source:
                    while block := source.read(2**20):
                        digest.update(block)
                        file.write(block)
            except ObjectMissing:
                raise GiveUp("instance-missing", "an object that the manifest names is not in the store") from None
            if digest.hexdigest() != entry.sha256:
                raise GiveUp("instance-digest", "an object is not what the manifest says")
            file.flush()
            # An empty file cannot be mapped. The map goes with its last view: decoders may hold one.
            yield memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if entry.size else memoryview(b"")

    def _load(self, entry: ManifestInstance) -> bytes:
        try:
            file = self._store.get(IDENTIFIABLE, entry.key)
        except ObjectMissing:
            raise GiveUp("instance-missing", "an object that the manifest names is not in the store") from None
        if hashlib.sha256(file).hexdigest() != entry.sha256:
            raise GiveUp("instance-digest", "an object is not what the manifest says")
        return file

    def _store_instance(self, entry: ManifestInstance, result: engine.Deidentified, prefix: str, subject: str) -> ResearchInstance:
        identity = self._pseudonyms.object_id(entry.sha256, self._profile.digest, str(self._pseudonyms.key_version), subject)[:32]
        key = f"instances/{prefix}/{result.series_instance_uid}/{result.sop_instance_uid}/{identity}.dcm"
        sha256 = hashlib.sha256(result.file).hexdigest()
        self._store.put_if_absent(RESEARCH, key, result.file, sha256=sha256, content_type="application/dicom")
        return ResearchInstance(
            sop_instance_uid=result.sop_instance_uid,
            series_instance_uid=result.series_instance_uid,
            sop_class_uid=result.sop_class_uid,
            modality=result.modality,
            key=key,
            sha256=sha256,
            size=len(result.file),
        )

    def _manifest(self, manifest: ResearchManifest, lines: list[bytes], folder: str) -> tuple[Stored, ResearchManifest]:
        # Named by content: whoever comes second finds what he would have written.
        digest = hashlib.sha256(manifest.to_bytes())
        for line in lines:
            digest.update(zlib.decompress(line) + b"\n")
        name = self._pseudonyms.object_id("manifest", digest.hexdigest())
        if lines:
            stored = self._put(RESEARCH, f"{folder}/{name}.metadata.jsonl.gz", _gzipped(lines), "application/gzip")
            reference = MetadataReference(bucket=stored.bucket, key=stored.key, sha256=stored.sha256, size=stored.size)
            manifest = manifest.model_copy(update={"metadata": reference})
        return self._put(RESEARCH, f"{folder}/{name}.json", manifest.to_bytes(), "application/json"), manifest

    def _put(self, bucket: str, key: str, body: bytes, content_type: str) -> Stored:
        sha256 = hashlib.sha256(body).hexdigest()
        if not self._store.put_if_absent(bucket, key, body, sha256=sha256, content_type=content_type):
            # Another version of the compressor may have written the same content in other bytes; what is there counts.
            body = self._store.get(bucket, key)
        return Stored(bucket, key, hashlib.sha256(body).hexdigest(), len(body))

    def _report(self, manifest: StudyManifest, held_back: list[Outcome], conflicts: dict[str, Comparison]) -> Stored:
        content = {
            "trust": manifest.trust,
            "study_instance_uid": manifest.study_instance_uid,
            "revision": manifest.revision,
            "stage": STAGE,
            "profile": self._profile.identity,
            "reasons": {reason: acceptance.REASONS[reason] for reason in sorted({outcome.reason or "" for outcome in held_back})},
            "instances": [
                {
                    "reason": outcome.reason,
                    "series_instance_uid": outcome.entry.series_instance_uid,
                    "sop_instance_uid": outcome.entry.sop_instance_uid,
                    "key": outcome.entry.key,
                    "sha256": outcome.entry.sha256,
                    **(
                        {"because": conflict.because, "differs": conflict.differs}
                        if (conflict := conflicts.get(outcome.entry.key)) is not None
                        else {}
                    ),
                }
                for outcome in held_back
            ],
        }
        body = json.dumps(content, indent=1).encode()
        key = quarantine_key(manifest.trust, manifest.study_instance_uid, manifest.revision, STAGE)
        sha256 = hashlib.sha256(body).hexdigest()
        self._store.put(IDENTIFIABLE, key, body, sha256=sha256, content_type="application/json")
        return Stored(IDENTIFIABLE, key, sha256, len(body))


def _without(outcomes: list[Outcome], contradicted: set[str]) -> list[Outcome]:
    """The outcomes with those instances held back that a later content contradicts: nobody has said yet which of them is right."""
    return [
        replace(outcome, reason=outcome.reason or CONFLICT, instance=None, line=b"")
        if outcome.entry.sop_instance_uid in contradicted
        else outcome
        for outcome in outcomes
    ]


def _identity(source: Instance, trust: Trust) -> tuple[Identity | None, str | None]:
    try:
        return identity_of(source, trust), None
    except NoPatientId:
        return None, "no-patient-id"
    except ConflictingPatients:
        return None, "conflicting-patients"


def _gzipped(lines: Iterable[bytes]) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        for line in lines:
            file.write(zlib.decompress(line) + b"\n")
    return buffer.getvalue()


def _in_order(function: Callable[[_Source], _Result], sources: Iterable[_Source], threads: int) -> Iterator[_Result]:
    """The results in order, `threads` at a time; the first failure ends it, after those that have begun."""
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for source in sources:
                waiting.append(pool.submit(function, source))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Budget:
    """Bytes that may be held at the same time. What is larger than all of it waits until it is alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free = size
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Hold `size` bytes of it; blocks until they are free."""
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()
