"""C-STORE in, dataset out: what three trusts sent is what a consumer downloads, without what identifies patients."""

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pydicom
import pytest
from hub_dicom.synthetic import SyntheticPatient, nhs_test_number, synthetic_series
from support.cohort import Cohort, signatures
from support.dicom_files import write_series
from support.exported import PARTS, Exported, create, download
from support.hub import Hub, send, wait_for

README = Path(__file__).parents[2] / "README.md"


def subjects(exported: Exported, part: str) -> set[str]:
    return {str(pydicom.dcmread(path, stop_before_pixels=True).PatientID) for path in exported.folders[part].rglob("*.dcm")}


def test_the_dataset_holds_exactly_what_was_sent(peaceful: Exported, cohort: Cohort) -> None:
    assert len(peaceful.images) == len(cohort.all)
    assert signatures(pydicom.dcmread(path) for path in peaceful.images) == cohort.signatures()


def test_every_image_says_that_it_is_deidentified_and_keeps_no_uid(peaceful: Exported, cohort: Cohort) -> None:
    known = {
        str(getattr(pydicom.dcmread(path, stop_before_pixels=True), keyword))
        for path in cohort.all
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    }
    for path in peaceful.images:
        dataset = pydicom.dcmread(path)
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.LongitudinalTemporalInformationModified == "MODIFIED"
        assert {item.CodeValue for item in dataset.DeidentificationMethodCodeSequence} == {"113100", "113107"}
        assert not known & {str(element.value) for element in dataset.iterall() if element.VR == "UI"}
        assert not known & set(path.read_bytes().decode("latin-1").replace("\0", " ").split())


def test_one_person_at_two_trusts_is_one_subject_and_stays_on_one_side(peaceful: Exported, cohort: Cohort) -> None:
    training, validation = subjects(peaceful, "training"), subjects(peaceful, "validation")
    assert len(training | validation) == cohort.patients
    assert not training & validation
    studies = Counter(
        subject for subject, _ in {(str(d.PatientID), str(d.StudyInstanceUID)) for d in map(pydicom.dcmread, peaceful.images)}
    )
    assert sorted(studies.values()) == [1] * (cohort.patients - 1) + [3]


def test_the_layout_is_folder_subject_study_series_with_a_json_twin(peaceful: Exported) -> None:
    folders = {"CT": "ct", "MR": "mri", "DX": "xray", "CR": "xray", "PT": "pet"}
    for part, folder in peaceful.folders.items():
        for path in folder.rglob("*.dcm"):
            dataset = pydicom.dcmread(path)
            subject, study, series = str(dataset.PatientID), str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID)
            below = path.relative_to(folder)
            assert below.parts[-6:] == (part, folders[dataset.Modality], subject, study, series, f"{dataset.SOPInstanceUID}.dcm")
            twin = folder / Path(
                *below.parts[:-6], part, f"{folders[dataset.Modality]}-metadata", subject, study, series, f"{dataset.SOPInstanceUID}.json"
            )
            elements = json.loads(twin.read_text())
            assert elements["00080018"]["Value"] == [str(dataset.SOPInstanceUID)]
            assert "7FE00010" not in elements
    assert len(peaceful.metadata) == len(peaceful.images)


def lags(hub: Hub) -> set[int]:
    return {group["records"] for group in hub.json("status")["lag"].values()}


def test_status_counts_every_trust_and_lag_is_zero(hub: Hub, peaceful: Exported, cohort: Cohort) -> None:
    wait_for(lambda: lags(hub) == {0}, 30, lambda: json.dumps(hub.json("status")["lag"]))
    status = hub.json("status")
    assert set(status["trusts"]) == {"northgate", "southmere", "eastvale"}
    assert sum(trust["received"]["instances"] for trust in status["trusts"].values()) >= len(cohort.all)
    assert sum(trust["indexed"]["done"] for trust in status["trusts"].values()) >= 13
    assert status["dead_letters"] == []
    text = hub.command("status").stdout
    assert all(name in text for name in status["trusts"])


def test_trace_shows_every_event_of_a_study_in_order(hub: Hub, peaceful: Exported, cohort: Cohort) -> None:
    study = str(pydicom.dcmread(cohort.files["NORTHGATE"][0], stop_before_pixels=True).StudyInstanceUID)
    events = hub.json("trace", study)
    topics = [event["topic"] for event in events]
    assert topics.count("identifiable.instance.received") >= 60
    first = {topic: topics.index(topic) for topic in topics}
    path = [
        "identifiable.instance.received",
        "identifiable.study.quiet",
        "identifiable.study.received",
        "research.study.deidentified",
        "research.study.indexed",
    ]
    assert [first[topic] for topic in path] == sorted(first[topic] for topic in path)
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)


def test_a_late_instance_makes_revision_two_and_is_in_the_next_version(
    hub: Hub, peaceful: Exported, cohort: Cohort, tmp_path: Path
) -> None:
    assert cohort.late
    calling, path = cohort.late
    assert send(hub, calling, [path]).returncode == 0
    wait_for(lambda: hub.indexed() == len(cohort.all) + 1, 60, lambda: f"{hub.indexed()} instances indexed")
    study = str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)
    revisions = [event["data"]["revision"] for event in hub.json("trace", study) if event["topic"] == "research.study.indexed"]
    assert sorted(set(revisions)) == [1, 2]
    create(hub, "main")
    second = download(hub, "main", 2, tmp_path)
    assert signatures(pydicom.dcmread(image) for image in second.images) == cohort.signatures([path])
    again = download(hub, "main", 1, tmp_path / "first")
    assert again.digests == peaceful.digests, "version 1 must not change"


def test_what_a_trust_s_own_router_puts_and_announces_is_indexed(hub: Hub, peaceful: Exported, tmp_path: Path) -> None:
    before = hub.indexed()
    patient = SyntheticPatient("Made^Router", nhs_test_number(77), "NHS")
    files = write_series(tmp_path, synthetic_series(patient, study="own router", series=7, instances=3))
    identities = json.loads(Path(hub.endpoints["credentials_file"]).read_text())
    s3, kafka = (identities[part]["router-eastvale"] for part in ("s3", "kafka"))
    environment = os.environ | {
        "ROUTER_S3_ACCESS_KEY": s3["access_key"],
        "ROUTER_S3_SECRET_KEY": s3["secret_key"],
        "ROUTER_KAFKA_USERNAME": kafka["username"],
        "ROUTER_KAFKA_PASSWORD": kafka["password"],
    }
    where = ["--store", hub.endpoints["s3"]["endpoint"], "--kafka", hub.endpoints["kafka"]["bootstrap_servers"]]
    sample = README.parent / "services" / "ingest" / "examples" / "router.py"
    command = [sys.executable, sample, "--trust", "eastvale", *where, "--protocol", "SASL_PLAINTEXT", *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: hub.indexed() == before + 3, 60, lambda: f"{hub.indexed() - before} of 3 instances indexed")
    study = str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
    told = {(event["data"]["origin"], event["source"]) for event in hub.json("trace", study) if event["type"] == "hub.instance.received.v1"}
    assert ("router", "ingest.gate") in told


def test_the_commands_of_the_readme_work(hub: Hub, peaceful: Exported, cohort: Cohort, tmp_path: Path) -> None:
    study = hub.qido("studies", limit="1")[0]["0020000D"]["Value"][0]
    lines = [line.strip() for block in README.read_text().split("```sh\n")[1:] for line in block.split("```")[0].splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line and not line.startswith("#")]
    assert ["make", "demo"] in commands
    assert ["make", "test"] in commands
    run = (README.parent / ".ci" / "run").read_text()
    for command in commands:
        if command[0] == "make":
            named = subprocess.run(["make", "--dry-run", *command[1:]], cwd=README.parent, capture_output=True, text=True, check=False)
            assert named.returncode == 0, named.stderr
            assert command[1] in ("up", "help") or f"make {command[1]}" in run or command[1].startswith(("test-", "bench-")), command
        elif command[0].endswith("bin/hub"):
            stand_for = {"DIR": str(tmp_path / "got"), "PATH": str(cohort.files["NORTHGATE"][0]), "STUDY": study}
            arguments = [stand_for.get(part, part) for part in command[1:]]
            result = hub.command(*arguments)
            assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"


@pytest.mark.parametrize("part", PARTS)
def test_a_consumer_of_one_part_cannot_read_the_other(hub: Hub, peaceful: Exported, part: str) -> None:
    from hub_objectstore import S3ObjectStore, StoreRefused  # noqa: PLC0415

    endpoints = hub.endpoints
    identity = json.loads(Path(endpoints["credentials_file"]).read_text())["s3"][f"{part}-consumer"]
    store = S3ObjectStore(endpoints["s3"]["endpoint"], identity["access_key"], identity["secret_key"])
    other = next(name for name in PARTS if name != part)
    assert list(store.list(f"datasets-{part}", "main/1/"))
    for bucket in (f"datasets-{other}", "research", "identifiable"):
        with pytest.raises(StoreRefused):
            list(store.list(bucket, ""))
