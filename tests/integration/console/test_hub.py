"""The hub as its commands give it: up, send, status, trace, export, and down again with nothing left behind."""

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from hub_dicom.synthetic import SyntheticPatient, nhs_test_number, synthetic_series
from support.dicom_files import write_series
from support.hub import Hub, alive, wait_for
from support.parts import ROOT

ENVIRONMENT = {"HUB_CACHE_FOLDER": os.environ.get("HUB_CACHE_FOLDER") or str(ROOT / ".hub" / "cache"), "HUB_LOG_STRICT": "true"}
STUDY = "console-integration"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A hub in a new folder, which the tests of this module leave in the state in which the next finds it."""
    folder = Path(tempfile.mkdtemp(prefix="hub-console-"))
    made = Hub(folder / "data", ENVIRONMENT)
    try:
        yield made.start()
    finally:
        if made.process is not None and made.process.poll() is None:
            made.stop()
        shutil.rmtree(folder)


def test_endpoints_say_where_everything_is(hub: Hub) -> None:
    endpoints = hub.endpoints
    assert hub.process is not None
    assert endpoints["supervisor"]["pid"] == hub.process.pid
    assert alive(endpoints["supervisor"]["supervisord_pid"])
    services = endpoints["services"]
    assert set(services) == {
        "receiver",
        "stow",
        "assembler",
        "closer",
        "commitment",
        "deidentification",
        "indexing",
        "indexing-api",
        "export",
    }
    assert all(alive(entry["pid"]) and Path(entry["log"]).exists() for entry in (*services.values(), *endpoints["parts"].values()))
    with socket.create_connection((endpoints["receiver"]["host"], endpoints["receiver"]["port"]), timeout=5):
        pass
    assert endpoints["receiver"]["ae_title"] == "REGIONALHUB"
    assert endpoints["qido"]["url"].startswith("http://127.0.0.1:")
    assert set(endpoints["stow"]["token_files"]) == {"northgate", "southmoor", "eastvale"}
    assert endpoints["s3"]["buckets"] == ["identifiable", "research", "datasets-training", "datasets-validation"]
    assert [trust["name"] for trust in endpoints["trusts"]] == ["northgate", "southmoor", "eastvale"]
    for path in (
        endpoints["credentials_file"],
        endpoints["qido"]["token_file"],
        *endpoints["stow"]["token_files"].values(),
        *endpoints["keys_files"].values(),
    ):
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600, path


def test_each_service_has_its_own_credentials_and_only_its_own_keys(hub: Hub) -> None:
    environments = {name: psutil.Process(entry["pid"]).environ() for name, entry in hub.endpoints["services"].items()}
    users = {name: environment.get("HUB_S3_ACCESS_KEY") for name, environment in environments.items() if name != "indexing-api"}
    assert len(set(users.values())) == len(users)
    assert [name for name, environment in environments.items() if "HUB_DEIDENTIFICATION_KEYS_FILE" in environment] == ["deidentification"]
    assert [name for name, environment in environments.items() if "HUB_SPLIT_KEYS_FILE" in environment] == ["export"]
    assert {name for name, environment in environments.items() if "HUB_TRUSTS_FILE" in environment} == {
        "receiver",
        "stow",
        "assembler",
        "closer",
        "commitment",
        "deidentification",
    }


def test_a_second_hub_over_the_same_folder_is_told_who_runs_and_changes_nothing(hub: Hub) -> None:
    second = hub.command("up", "--data", hub.folder)
    assert second.returncode == 1
    assert hub.process is not None
    assert str(hub.process.pid) in second.stderr
    assert str(hub.endpoints["receiver"]["port"]) in second.stdout
    assert hub.json("status")["services"]["receiver"]["ready"]


def test_files_are_sent_and_followed_to_a_dataset(hub: Hub, tmp_path: Path) -> None:
    for number in range(6):
        patient = SyntheticPatient(f"Made^Up{number}", nhs_test_number(number), "NHS")
        write_series(tmp_path / "files" / str(number), synthetic_series(patient, study=f"{STUDY} {number}", instances=3))
    (tmp_path / "files" / "notes.txt").write_text("no image")
    sent = hub.command("send", tmp_path / "files", "--calling", "NORTHGATE", "--jobs", "2")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "0x0000 stored" in sent.stdout
    assert "18 of 18" in sent.stdout
    assert "notes.txt: not a DICOM file" in sent.stderr
    wait_for(lambda: hub.json("status")["trusts"]["northgate"]["indexed"]["done"] == 6, 90, "the studies were not indexed")
    status = hub.json("status")
    assert status["trusts"]["northgate"]["indexed"] == {"done": 6, "waiting": 0, "failed": 0, "held_back": 0, "instances": 18}
    wait_for(lambda: not any(lag["records"] for lag in hub.json("status")["lag"].values()), 30, "the lag does not reach zero")

    study = next(synthetic_series(SyntheticPatient("x", "y"), study=f"{STUDY} 0", instances=1)).study_instance_uid
    events = hub.json("trace", study)
    assert [event["type"] for event in events] == [
        *["hub.instance.received.v1"] * 3,
        "hub.study.quiet.v1",
        "hub.study.received.v1",
        "hub.study.deidentified.v1",
        "hub.study.indexed.v1",
    ]
    assert hub.json("trace", events[-1]["key"]) == events
    assert hub.command("trace", "9.9.9").returncode == 1

    made = hub.command("export", "create", "first", "--where", "Modality=CT", "--training-percent", "50")
    assert made.returncode == 0, made.stdout + made.stderr
    refused = hub.command("export", "create", "none", "--where", "Modality=MG", "--training-percent", "50")
    assert refused.returncode == 1
    assert "Refused" in refused.stderr
    (version,) = hub.json("export", "list")
    assert (version["dataset"], version["version"]) == ("first", 1)
    assert version["training"]["instances"] + version["validation"]["instances"] == 18
    assert "datasets-training/first/1" in hub.command("export", "show", "first").stdout
    for _ in range(2):
        fetched = [
            hub.command("export", "download", "first", tmp_path / "out" / part, "--part", part) for part in ("training", "validation")
        ]
        assert [one.returncode for one in fetched] == [0, 0], fetched[0].stderr + fetched[1].stderr
    assert all("; 0 of them fetched now" in one.stdout for one in fetched)
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 18


def test_a_caller_that_is_not_known_and_a_file_that_cannot_be_stored_make_send_fail_with_the_reason(hub: Hub, tmp_path: Path) -> None:
    patient = SyntheticPatient("Made^Up", nhs_test_number(9), "NHS")
    good, bad = write_series(tmp_path, synthetic_series(patient, study="refusals", instances=2))
    bad.write_bytes(bad.read_bytes()[:600])
    unknown = hub.command("send", good, "--calling", "NOBODY")
    assert unknown.returncode == 1
    assert "refuses NOBODY: Calling AE title not recognised" in unknown.stderr
    mixed = hub.command("send", tmp_path, "--calling", "NORTHGATE")
    assert mixed.returncode == 1
    assert "1 of 2 files were not stored" in mixed.stderr
    assert "0xC000" in mixed.stderr


def test_a_service_that_is_killed_runs_again_and_endpoints_tell_its_new_process(hub: Hub) -> None:
    before = hub.endpoints["services"]["export"]["pid"]
    psutil.Process(before).kill()
    after = wait_for(lambda: (pid := hub.endpoints["services"]["export"]["pid"]) != before and pid, 30, "the service was not started again")
    wait_for(lambda: hub.json("status")["services"]["export"]["ready"], 60, "the service did not become ready again")
    assert alive(after)


def indexed(hub: Hub) -> int:
    """Studies of Northgate that the index has, by `hub status`."""
    trusts = hub.json("status")["trusts"]
    return int(trusts["northgate"]["indexed"]["done"]) if "northgate" in trusts else 0


def test_stopping_leaves_nothing_and_the_same_folder_starts_again_with_its_data(hub: Hub) -> None:
    keys = {path: Path(path).read_bytes() for path in hub.endpoints["keys_files"].values()}
    before, datasets = indexed(hub), hub.json("export", "list")
    hub.stop()
    assert not (hub.folder / "endpoints.json").exists()
    gone = hub.command("status")
    assert gone.returncode == 1
    assert "no hub runs over" in gone.stderr
    hub.start()
    assert {path: Path(path).read_bytes() for path in hub.endpoints["keys_files"].values()} == keys
    wait_for(lambda: indexed(hub) >= before, 90, lambda: f"what was indexed before is not there any more: {hub.json('status')}")
    assert hub.json("export", "list") == datasets


def test_stow_takes_each_trusts_own_token(hub: Hub) -> None:
    stow = hub.endpoints["stow"]
    (instance,) = synthetic_series(SyntheticPatient("Made^Stow", nhs_test_number(90), "NHS"), study=f"{STUDY} stow", instances=1)
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + instance.content + b"\r\n--b--\r\n"
    for trust, file in stow["token_files"].items():
        headers = {
            "Authorization": f"Bearer {Path(file).read_text().strip()}",
            "Content-Type": 'multipart/related; type="application/dicom"; boundary=b',
        }
        response = httpx.post(f"{stow['url']}/studies/{instance.study_instance_uid}", content=body, headers=headers, timeout=30)
        assert response.status_code == 200, trust
    assert httpx.post(f"{stow['url']}/studies", content=body).status_code == 401
    wait_for(lambda: hub.json("status")["trusts"]["eastvale"]["indexed"]["done"] == 1, 60, "what came by STOW-RS was not indexed")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = Hub(tmp_path / "data", ENVIRONMENT | {"HUB_KAFKA_PORT": str(port)})
        result = other.command("up", "--data", other.folder)
    assert result.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken" in result.stderr
    assert "Traceback" not in result.stderr


def test_settings_that_cannot_be_are_said_before_anything_starts(tmp_path: Path) -> None:
    other = Hub(tmp_path / "data", ENVIRONMENT)
    result = other.command("up", "--data", other.folder, "--s3", "seaweedfs", "--durability", "power")
    assert result.returncode == 1
    assert "needs MinIO" in result.stderr
    assert not other.folder.exists()
