"""The message path over a store in memory: what is written, what is said, and what happens when something is not as announced."""

import gzip
import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hub_deidentification.identity import PURPOSES, Identity
from hub_deidentification.profile import load_profile
from hub_deidentification.service import handle, load_parts
from hub_deidentification.settings import DeidentificationSettings
from hub_deidentification.study import _Budget
from hub_dicom import Trusts, variants_key
from hub_dicom.synthetic import nhs_test_number
from hub_objectstore import MemoryObjectStore, StoreUnavailable
from hub_runtime.errors import GiveUp, StopProcess
from hub_runtime.keyring import KeyRing
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian
from support.deidentified import STUDY, TRUSTS, Zone, ct, encoded, pseudonyms

NHS = nhs_test_number(4711)


def images(count: int, **values: object) -> list[bytes]:
    return [encoded(ct(SOPInstanceUID=f"1.2.3.{number}", InstanceNumber=str(number), **values)) for number in range(1, count + 1)]


def other_id(number: str) -> Sequence:
    item = Dataset()
    item.PatientID, item.IssuerOfPatientID = number, "NHS"
    return Sequence([item])


def test_a_study_goes_its_way() -> None:
    zone = Zone()
    answer = zone.run(zone.receive("southmere", images(5)))
    said, manifest = answer.deidentified, answer.manifest
    assert answer.quarantined is None
    assert (said.instances, said.held_back, said.revision, said.key_version) == (5, 0, 1, 1)
    assert said.profile == load_profile().identity
    assert said.subject == pseudonyms().subject(Identity(None, ("SMR", "LOCAL1")))
    assert said.model_dump(include={"research_study_uid", "source", "subject", "revision", "profile"}) == manifest.model_dump(
        include={"research_study_uid", "source", "subject", "revision", "profile"}
    )
    for instance in manifest.instances:
        content = zone.store.get("research", instance.key)
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (instance.sha256, instance.size)
        data_set = dcmread(io.BytesIO(content))
        assert (data_set.SOPInstanceUID, data_set.SeriesInstanceUID, data_set.SOPClassUID, data_set.Modality) == (
            instance.sop_instance_uid,
            instance.series_instance_uid,
            instance.sop_class_uid,
            instance.modality,
        )
        prefix = f"instances/{said.research_study_uid}/{said.source}/{instance.series_instance_uid}/{instance.sop_instance_uid}/"
        assert re.fullmatch(re.escape(prefix) + r"[0-9a-f]{32}\.dcm", instance.key)
    assert manifest.metadata is not None
    compressed = zone.store.get(manifest.metadata.bucket, manifest.metadata.key)
    assert hashlib.sha256(compressed).hexdigest() == manifest.metadata.sha256
    lines = [json.loads(line) for line in gzip.decompress(compressed).splitlines()]
    assert [line["00080018"]["Value"][0] for line in lines] == [instance.sop_instance_uid for instance in manifest.instances]
    assert all("7FE00010" not in line for line in lines)


def test_a_repeat_changes_nothing() -> None:
    zone = Zone()
    event = zone.receive("southmere", images(3))
    first = zone.run(event)
    before = {(info.bucket, info.key): info.last_modified for info in zone.store.list("research", "")}
    assert zone.run(event) == first
    assert {(info.bucket, info.key): info.last_modified for info in zone.store.list("research", "")} == before


def test_another_process_writes_the_same() -> None:
    one, other = Zone(), Zone()
    files = images(3)
    answers = [zone.run(zone.receive("southmere", files)) for zone in (one, other)]
    assert answers[0] == answers[1]


def test_a_late_instance_adds_and_repeats_the_others() -> None:
    zone = Zone()
    files = images(4)
    first = zone.run(zone.receive("southmere", files[:3]))
    second = zone.run(zone.receive("southmere", files, revision=2))
    assert second.deidentified.revision == 2
    assert set(first.manifest.instances) < set(second.manifest.instances)
    assert second.deidentified.manifest.key != first.deidentified.manifest.key


def test_another_key_version_makes_other_objects() -> None:
    zone, files = Zone(), images(1)
    again = Zone(zone.store, KeyRing(2, KeyRing.generate(PURPOSES).keys))
    first, second = zone.run(zone.receive("southmere", files)), again.run(zone.receive("southmere", files))
    assert second.deidentified.key_version == 2
    assert first.manifest.instances[0].key != second.manifest.instances[0].key


def test_what_is_held_back_is_reported_and_the_rest_goes_on() -> None:
    zone = Zone()
    report = encoded(ct(SOPInstanceUID="1.2.3.8", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"))
    nobody = encoded(ct(SOPInstanceUID="1.2.3.9", PatientID=""))
    answer = zone.run(zone.receive("southmere", [*images(2), report, nobody]))
    assert (answer.deidentified.instances, answer.deidentified.held_back) == (2, 2)
    assert answer.reasons == {"structured-report": 1, "no-patient-id": 1}
    assert answer.quarantined is not None
    assert (answer.quarantined.scope, answer.quarantined.stage) == ("instances", "deidentification")
    body = zone.store.get(answer.quarantined.report.bucket, answer.quarantined.report.key)
    assert hashlib.sha256(body).hexdigest() == answer.quarantined.report.sha256
    named = {entry["sop_instance_uid"]: entry["reason"] for entry in json.loads(body)["instances"]}
    assert named == {"1.2.3.8": "structured-report", "1.2.3.9": "no-patient-id"}
    assert b"SOMEBODY" not in body


def test_nothing_to_release_is_said_too() -> None:
    zone = Zone()
    answer = zone.run(zone.receive("southmere", images(2, BurnedInAnnotation="YES")))
    assert (answer.deidentified.subject, answer.deidentified.instances, answer.deidentified.held_back) == (None, 0, 2)
    assert answer.manifest.metadata is None
    assert answer.quarantined is not None
    assert answer.quarantined.scope == "study"


def test_a_variant_that_says_something_else_is_a_conflict_and_a_copy_is_not() -> None:
    zone = Zone()
    files = images(1)
    answer = zone.run(zone.receive("southmere", files, variants=images(1, PatientName="OTHER^NAME")))
    assert (answer.deidentified.instances, answer.deidentified.held_back) == (1, 0)
    assert answer.reasons == {"variant-conflict": 1}
    assert answer.quarantined is not None
    report = zone.store.get("identifiable", answer.quarantined.report.key)
    (entry,) = json.loads(report)["instances"]
    assert (entry["because"], entry["differs"]) == ("elements", ["(0010,0010)"])
    assert b"OTHER" not in report

    copies = [
        *images(1, PatientID="COERCED1", AccessionNumber="A2"),
        encoded(ct(SOPInstanceUID="1.2.3.1", InstanceNumber="1"), ImplicitVRLittleEndian),
    ]
    answer = zone.run(zone.receive("southmere", files, revision=2, variants=copies))
    assert (answer.deidentified.instances, answer.quarantined) == (1, None)
    record = zone.store.get("identifiable", variants_key("southmere", STUDY, 2))
    assert [entry["verdict"] for entry in json.loads(record)["variants"]] == ["coerced", "recoded"]
    assert b"COERCED1" not in record


def test_the_same_study_from_two_trusts_is_two_sources_and_no_conflict() -> None:
    zone = Zone()
    files = images(2)
    answers = [zone.run(zone.receive(trust, files)) for trust in ("southmere", "eastvale")]
    assert [answer.quarantined for answer in answers] == [None, None]
    assert len({answer.deidentified.research_study_uid for answer in answers}) == 1
    assert len({answer.deidentified.source for answer in answers}) == 2
    assert [answer.deidentified.instances for answer in answers] == [2, 2]


def test_two_patients_in_one_study_hold_all_of_it_back() -> None:
    zone = Zone()
    stray = encoded(ct(SOPInstanceUID="1.2.3.9", PatientID="LOCAL2"))
    answer = zone.run(zone.receive("southmere", [*images(2), stray]))
    assert answer.reasons == {"conflicting-patients": 3}
    assert (answer.deidentified.subject, answer.manifest.instances) == (None, ())


def test_a_report_of_another_patient_holds_the_study_back_too() -> None:
    zone = Zone()
    stray = encoded(ct(SOPInstanceUID="1.2.3.9", PatientID="LOCAL2", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"))
    answer = zone.run(zone.receive("southmere", [*images(2), stray]))
    assert answer.reasons == {"conflicting-patients": 2, "structured-report": 1}
    assert answer.deidentified.instances == 0


def test_two_national_numbers_in_one_instance_hold_the_study_back() -> None:
    zone = Zone()
    both = Sequence([*other_id(NHS), *other_id(nhs_test_number(5))])
    confused = encoded(ct(SOPInstanceUID="1.2.3.9", OtherPatientIDsSequence=both))
    assert zone.run(zone.receive("eastvale", [*images(1), confused])).reasons == {"conflicting-patients": 2}


def test_one_person_at_two_trusts() -> None:
    zone = Zone()
    here = zone.run(zone.receive("northgate", images(1, PatientID=NHS, IssuerOfPatientID="NHS")))
    there = zone.run(zone.receive("eastvale", images(1, PatientID="E17", OtherPatientIDsSequence=other_id(NHS))))
    assert here.deidentified.subject == there.deidentified.subject
    assert here.deidentified.research_study_uid == there.deidentified.research_study_uid
    assert here.deidentified.source != there.deidentified.source
    results = [dcmread(io.BytesIO(zone.store.get("research", answer.manifest.instances[0].key))) for answer in (here, there)]
    assert results[0].StudyDate == results[1].StudyDate
    assert results[0].SOPInstanceUID == results[1].SOPInstanceUID


def test_an_instance_without_the_national_number_belongs_to_whom_the_others_name() -> None:
    zone = Zone()
    plain = encoded(ct(SOPInstanceUID="1.2.3.9", PatientID="E17"))
    answer = zone.run(zone.receive("eastvale", [plain, *images(1, PatientID="E17", OtherPatientIDsSequence=other_id(NHS))]))
    assert answer.deidentified.instances == 2
    results = [dcmread(io.BytesIO(zone.store.get("research", instance.key))) for instance in answer.manifest.instances]
    assert {result.PatientID for result in results} == {pseudonyms().subject(Identity(NHS, None))}
    assert len({result.StudyDate for result in results}) == 1


def test_an_instance_that_says_it_is_another_is_held_back() -> None:
    zone = Zone()
    event = zone.receive("southmere", images(1))
    store = MemoryObjectStore()
    other = Zone(store)
    moved = other.receive("southmere", images(1, SeriesInstanceUID="1.2.3.77"))
    body = json.loads(store.get("identifiable", moved.data.manifest.key))
    body["instances"][0]["series_instance_uid"] = "1.2.3.78"
    forged = json.dumps(body).encode()
    store.put("identifiable", moved.data.manifest.key, forged)
    reference = moved.data.manifest.model_copy(update={"sha256": hashlib.sha256(forged).hexdigest(), "size": len(forged)})
    answer = other.run(replace(moved, data=moved.data.model_copy(update={"manifest": reference})))
    assert answer.reasons == {"contradicts-manifest": 1}
    assert event.data.manifest != reference


def given_up(zone: Zone, event: object) -> str:
    with pytest.raises(GiveUp) as reason:
        zone.handle(event)  # type: ignore[arg-type]
    return reason.value.reason


def test_what_is_not_as_announced_is_given_up() -> None:
    zone = Zone()
    event = zone.receive("southmere", images(2))
    data = event.data
    other = data.manifest.model_copy(update={"sha256": "0" * 64})
    assert given_up(zone, replace(event, data=data.model_copy(update={"manifest": other}))) == "manifest-digest"
    nowhere = data.manifest.model_copy(update={"key": "manifests/none"})
    assert given_up(zone, replace(event, data=data.model_copy(update={"manifest": nowhere}))) == "manifest-missing"
    assert given_up(zone, replace(event, data=data.model_copy(update={"revision": 7}))) == "manifest-of-another"
    assert given_up(zone, replace(event, data=data.model_copy(update={"trust": "elsewhere"}))) == "unknown-trust"
    entry = json.loads(zone.store.get("identifiable", data.manifest.key))["instances"][1]
    zone.store.put("identifiable", entry["key"], b"something else")
    assert given_up(zone, event) == "instance-digest"
    zone.store.delete("identifiable", entry["key"])
    assert given_up(zone, event) == "instance-missing"
    assert [info.key for info in zone.store.list("research", "manifests/")] == []


def test_a_store_that_is_away_is_a_passing_fault() -> None:
    store = MemoryObjectStore()
    zone = Zone(store)
    event = zone.receive("southmere", images(2))
    store.away = True
    with pytest.raises(StoreUnavailable):
        zone.handle(event)
    store.away = False
    assert zone.run(event).deidentified.instances == 2


def test_events_follow_the_one_that_caused_them() -> None:
    zone = Zone()
    event = zone.receive("southmere", images(1, BurnedInAnnotation="YES"))
    events = handle(event, store=zone.store, trusts=TRUSTS, deidentification=zone.deidentification)
    assert [found.topic for found in events] == ["research.study.deidentified", "identifiable.study.quarantined"]
    assert [found.key for found in events] == [pseudonyms().uid(event.key), event.key]
    assert {found.trace_id for found in events} == {event.trace_id}
    assert {found.source for found in events} == {"deidentification"}
    again = handle(event, store=zone.store, trusts=TRUSTS, deidentification=zone.deidentification)
    assert [found.id for found in events] == [found.id for found in again]


def test_memory_is_shared_out() -> None:
    budget = _Budget(10)
    with budget.taken(4), budget.taken(6):
        assert budget._free == 0
    with budget.taken(1000):
        assert budget._free == 0
    assert budget._free == 10


def settings(tmp_path: Path, **values: object) -> DeidentificationSettings:
    trusts = tmp_path / "trusts.yaml"
    trusts.write_text(TRUSTS.model_dump_json())
    common = {"kafka_bootstrap_servers": "127.0.0.1:1", "s3_endpoint": "http://127.0.0.1:1", "s3_access_key": "a", "s3_secret_key": "b"}
    return DeidentificationSettings.model_validate({**common, "trusts_file": trusts, **values})


def ring(*purposes: str) -> str:
    return json.dumps({"version": 3, "keys": dict.fromkeys(purposes, "ab" * 32)})


def test_parts_are_loaded(tmp_path: Path) -> None:
    keys, trusts, profile = load_parts(settings(tmp_path, deidentification_keys=ring(*PURPOSES)))
    assert keys.version == 3
    assert isinstance(trusts, Trusts)
    assert profile.identity == load_profile().identity


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "HUB_DEIDENTIFICATION_KEYS_FILE"),
        ({"deidentification_keys": ring(*PURPOSES), "deidentification_keys_file": "keys.json"}, "or two"),
        ({"deidentification_keys_file": "/nowhere/keys.json"}, "cannot be read"),
        ({"deidentification_keys": ring("subject", "uid")}, "date, object, source"),
        ({"deidentification_keys": ring(*PURPOSES), "trusts_file": "/nowhere/trusts.yaml"}, "HUB_TRUSTS_FILE"),
        ({"deidentification_keys": ring(*PURPOSES), "deidentification_profile": "none"}, "no profile"),
    ],
)
def test_what_is_missing_at_start_is_said(tmp_path: Path, values: dict[str, object], says: str) -> None:
    with pytest.raises(StopProcess, match=says) as stop:
        load_parts(settings(tmp_path, **values))
    assert stop.value.exit_code == 78
    assert "ab" * 32 not in str(stop.value)
