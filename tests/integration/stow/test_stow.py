"""STOW-RS on a real broker and store, with senders that are not ours: dicomweb-client and Orthanc."""

import io
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from dicomweb_client.web import DICOMwebClient
from hub_dicom import parse_instance_key
from hub_dicom.synthetic import SyntheticPatient, synthetic_series, synthetic_uid
from hub_objectstore import S3ObjectStore
from hub_parts import Parts
from hub_parts.ports import free_port
from pydicom import Dataset, dcmread
from requests import Session
from support.dicom_files import write_series
from support.orthanc import orthanc
from support.receiver_process import TRUSTS, ReceiverProcess, Topic
from support.senders import send
from support.stow import CONTENT_TYPE, TOKENS, StartStow, StowProcess, multipart, reasons, stored

BUCKET = "identifiable"
PATIENT = SyntheticPatient("SYNTHETIC^STOW", "S-1")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def contents(study: str, instances: int, pixels: int = 64) -> list[bytes]:
    return [one.content for one in synthetic_series(PATIENT, study=study, instances=instances, pixels=pixels)]


def objects(store: S3ObjectStore, study: str, trust: str = "northgate") -> dict[str, int]:
    return {info.key: info.size for info in store.list(BUCKET, f"{trust}/{synthetic_uid(study)}/")}


def test_dicomweb_client_stores_a_study(stow: StowProcess, admin_store: S3ObjectStore, topic: Topic) -> None:
    session = Session()
    session.headers["Authorization"] = f"Bearer {TOKENS['northgate']}"
    client = DICOMwebClient(stow.url, session=session, chunk_size=100_000)
    data_sets = [dcmread(io.BytesIO(content)) for content in contents("client", 12, pixels=128)]
    answer = client.store_instances(data_sets, study_instance_uid=synthetic_uid("client"))
    session.close()
    expected = [str(one.SOPInstanceUID) for one in data_sets]
    assert stored(answer) == expected
    assert sorted(parse_instance_key(key).sop_instance_uid for key in objects(admin_store, "client")) == sorted(expected)
    events = topic.events()
    assert {event.data.object.key for event in events} == set(objects(admin_store, "client"))
    assert {(event.source, event.data.origin, event.data.trust) for event in events} == {("ingest.stow", "stow-rs", "northgate")}


def test_the_same_object_as_by_c_store_and_only_one(
    stow: StowProcess, parts: Parts, admin_store: S3ObjectStore, topic: Topic, tmp_path: Path
) -> None:
    instances = list(synthetic_series(PATIENT, study="both-ways", instances=2))
    body = multipart([one.content for one in instances])
    assert [stow.post(body).status_code for _ in range(2)] == [200, 200]
    before = objects(admin_store, "both-ways")
    (tmp_path / "trusts.yaml").write_text(TRUSTS)
    receiver = ReceiverProcess(
        parts.environment("receiver")
        | {"HUB_RECEIVER_PORT": "0", "HUB_TRUSTS_FILE": str(tmp_path / "trusts.yaml"), "HUB_DATA_FOLDER": str(tmp_path)}
    )
    try:
        receiver.wait_listening()
        assert [one.status for one in send(receiver.peer, write_series(tmp_path / "files", iter(instances)))] == [0, 0]
    finally:
        receiver.stop()
    assert objects(admin_store, "both-ways") == before
    assert len(before) == 2
    assert [event.data.origin for event in topic.events()].count("c-store") == 2
    assert stow.metric('hub_stow_instances_total{result="repeated"') >= 2


def test_what_identifies_a_study_of_another_trust_stays_apart(stow: StowProcess, admin_store: S3ObjectStore) -> None:
    body = multipart(contents("two-trusts", 1))
    assert [stow.post(body, trust=trust).status_code for trust in ("northgate", "southmead")] == [200, 200]
    assert [len(objects(admin_store, "two-trusts", trust)) for trust in ("northgate", "southmead")] == [1, 1]
    refused = stow.post(body, trust="elsewhere")
    assert (refused.status_code, refused.headers["content-type"]) == (403, "text/plain; charset=utf-8")
    assert httpx.post(f"{stow.url}/studies", content=body, headers={"Content-Type": CONTENT_TYPE}).status_code == 401
    assert httpx.get(f"{stow.url}/anything").status_code == 401


def test_a_large_part_goes_through_a_file(start_stow: StartStow, admin_store: S3ObjectStore) -> None:
    with start_stow(HUB_STOW_MEMORY_BYTES="100000") as stow:
        stow.wait_until(stow.ready)
        assert stow.post(multipart(contents("file", 3, pixels=512))).status_code == 200
    assert len(objects(admin_store, "file")) == 3


@pytest.mark.parametrize("part", ["store", "broker"])
def test_a_part_that_hangs_is_503_in_time_and_over_when_it_goes_on(
    stow: StowProcess, parts: Parts, admin_store: S3ObjectStore, part: str
) -> None:
    program = next(name for name in parts.programs if (name == "kafka") == (part == "broker"))
    body = multipart(contents(f"hangs-{part}", 30))
    stow.wait_until(stow.ready, seconds=40)
    parts.supervisor.signal(program, signal.SIGSTOP)
    try:
        start = time.monotonic()
        first = stow.post(body)
        took = time.monotonic() - start
        stow.wait_until(lambda: not stow.ready())
        start = time.monotonic()
        second = stow.post(body)
        assert time.monotonic() - start < 5, "who is unready says so at once"
    finally:
        parts.supervisor.signal(program, signal.SIGCONT)
    assert [first.status_code, second.status_code] == [503, 503]
    assert "retry-after" in first.headers
    assert "retry-after" in second.headers
    assert took < 25, "a sender waits 30 s at most"
    assert set(reasons(Dataset.from_json(first.json()))) <= {0xA700}
    stow.wait_until(stow.ready, seconds=40)
    answer = stow.post(body)
    assert answer.status_code == 200
    assert len(objects(admin_store, f"hangs-{part}")) == 30


def test_a_store_that_goes_away_in_the_middle_leaves_what_was_stored_named(
    stow: StowProcess, parts: Parts, admin_store: S3ObjectStore, topic: Topic
) -> None:
    program = next(name for name in parts.programs if name != "kafka")
    stow.wait_until(stow.ready, seconds=40)
    body = multipart(contents("middle", 20, pixels=256))

    def slowly() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        stow.wait_until(lambda: len(objects(admin_store, "middle")) >= 5)
        time.sleep(1)
        parts.supervisor.signal(program, signal.SIGSTOP)
        yield body[len(body) // 2 :]

    try:
        response = stow.post(slowly())
    finally:
        parts.supervisor.signal(program, signal.SIGCONT)
    assert response.status_code == 202
    answer = Dataset.from_json(response.json())
    assert 5 <= len(stored(answer)) < 20
    assert len(stored(answer)) + len(reasons(answer)) == 20
    assert set(reasons(answer)) == {0xA700}
    assert set(stored(answer)) <= {event.data.sop_instance_uid for event in topic.events()}
    stow.wait_until(stow.ready, seconds=40)


def test_a_sender_that_breaks_off_stores_only_what_was_whole_and_the_next_is_served(stow: StowProcess, admin_store: S3ObjectStore) -> None:
    stow.wait_until(stow.ready, seconds=40)
    body = multipart(contents("broken-off", 2, pixels=256))
    address = httpx.URL(stow.url)
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKENS['northgate']}\r\n"
        head += f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:-1000])
    stow.wait_until(lambda: "a sender hung up before its request was whole" in stow.events)
    stow.wait_until(lambda: stow.metric("hub_stow_requests_open") == 0)
    assert stow.post(multipart(contents("after", 1))).status_code == 200
    assert len(objects(admin_store, "broken-off")) == 1


def test_who_connects_and_asks_nothing_is_hung_up_on(stow: StowProcess) -> None:
    address = httpx.URL(stow.url)
    with socket.create_connection((address.host, address.port or 80), timeout=25) as connection:
        assert connection.recv(1) == b""


def test_many_at_once_and_a_slow_one_beside_them(start_stow: StartStow, admin_store: S3ObjectStore) -> None:
    with start_stow() as stow:
        stow.wait_until(stow.ready)
        ended = threading.Event()

        def drip() -> Iterator[bytes]:
            for byte in multipart(contents("slow", 1)):
                yield bytes([byte])
                if ended.wait(0.2):
                    return

        def slow() -> None:
            with suppress(httpx.HTTPError):
                stow.post(drip())

        slow_one = threading.Thread(target=slow)
        slow_one.start()
        answers: dict[int, int] = {}

        def run(number: int) -> None:
            answers[number] = stow.post(multipart(contents(f"many-{number}", 10)), trust="southmead").status_code

        threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ended.set()
        slow_one.join()
        assert set(answers.values()) == {200}
        assert [len(objects(admin_store, f"many-{number}", "southmead")) for number in range(6)] == [10] * 6


def test_workers_share_the_port(start_stow: StartStow) -> None:
    port = free_port()
    with start_stow("--workers", "2", HUB_STOW_PORT=str(port)) as stow:
        stow.wait_until(lambda: stow.events.count("listening") == 2)
        stow.url = f"http://127.0.0.1:{port}/dicom-web"
        deadline = time.monotonic() + 20
        while stow.post(multipart(contents("workers", 1))).status_code == 503:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert [stow.post(multipart(contents("workers", 1))).status_code for _ in range(8)].count(200) >= 6


@pytest.mark.peers
def test_orthanc_sends_a_study(stow: StowProcess, admin_store: S3ObjectStore, tmp_path: Path) -> None:
    assert PLUGIN.exists(), "Orthanc's DICOMweb plugin is missing: apt-get install orthanc-dicomweb"
    stow.wait_until(stow.ready, seconds=40)
    server = {
        "Url": f"{stow.url}/",
        "HttpHeaders": {"Authorization": f"Bearer {TOKENS['northgate']}"},
        "ChunkedTransfers": True,
        "HasDelete": False,
    }
    with orthanc(tmp_path, Plugins=[str(PLUGIN)], DicomWeb={"Enable": True, "StowMaxInstances": 4, "Servers": {"hub": server}}) as router:
        names = [router.post("/instances", content=content).json()["ID"] for content in contents("orthanc", 10, pixels=256)]
        (study,) = router.get("/studies").json()
        sent = router.post("/dicom-web/servers/hub/stow", json={"Resources": [study], "Synchronous": True})
        assert sent.status_code == 200, sent.text
        assert len(names) == 10
    assert {parse_instance_key(key).sop_instance_uid for key in objects(admin_store, "orthanc")} == {
        synthetic_uid("orthanc", 1, number) for number in range(1, 11)
    }
