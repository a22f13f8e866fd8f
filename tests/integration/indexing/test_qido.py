"""QIDO-RS (PS3.18 10.6) on a real PostgreSQL: matching, levels, returned attributes, paging, and who may ask."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn
from hub_indexing.api import TOKENS_FILE, make_app
from hub_indexing.database import migrate, open_pool
from hub_indexing.service import handle
from hub_objectstore import MemoryObjectStore
from hub_runtime import StopProcess
from hub_runtime.web import load_tokens
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool
from support.research import CT, Databases, Image, element, fresh_database, put_revision

TOKEN = "token-of-a-test"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
TOKENS = {DIGEST: "viewer"}
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def study_elements(date: str, time: str, description: str, name: str) -> dict[str, Any]:
    return {
        "00080020": element("DA", date),
        "00080030": element("TM", time),
        "00081030": element("LO", description),
        "00100010": element("PN", {"Alphabetic": name}),
        "00100040": element("CS", "F"),
    }


A = study_elements("20200115", "101500.25", "CT Thorax 100%", "Test^Anna")
B = study_elements("20200630", "235959", "MR_Head", "test^Bob")
C = study_elements("20211231", "00", "Chest\\x", "Other^Carl")
STUDIES = {
    "1.1": [
        Image("1.1.1.1", "1.1.1", "CT", A | {"00200013": element("IS", 1), "00200011": element("IS", 7), "00280010": element("US", 512)}),
        Image("1.1.1.2", "1.1.1", "CT", A | {"00200013": element("IS", 2), "00200011": element("IS", 7)}),
        Image("1.1.2.1", "1.1.2", "SR", A | {"00200013": element("IS", "1"), "0008103E": element("LO", "Report")}),
    ],
    "1.2": [
        Image(
            "1.2.1.1",
            "1.2.1",
            "MR",
            B
            | {
                "00080008": element("CS", "ORIGINAL", "PRIMARY"),
                "00180087": element("DS", 1.5),
                "00400275": {"vr": "SQ", "Value": [{"00400009": element("SH", "STEP1")}, {"00400009": element("SH", "STEP2")}]},
            },
        )
    ],
    "1.3": [Image("1.3.1.1", "1.3.1", "DX", C)],
}


@pytest.fixture(scope="module")
def databases(database: str) -> Iterator[Databases]:
    with fresh_database(database, "indexing_qido") as databases:
        with psycopg.connect(databases.url("indexing")) as connection:
            migrate(connection)
        store = MemoryObjectStore()
        with open_pool(databases.url("indexing")) as pool:
            for number, (study, images) in enumerate(STUDIES.items(), 1):
                handle(put_revision(store, study, "source01", 1, images, subject=f"Subject000{number}"), store=store, pool=pool)
            # Another trust has one instance of study 1.1 with another description: not the canonical source.
            other = Image("1.1.1.1", "1.1.1", "CT", A | {"00081030": element("LO", "Elsewhere")})
            handle(put_revision(store, "1.1", "source02", 1, [other], subject="Subject0001"), store=store, pool=pool)
        yield databases


@contextmanager
def served(app: Any) -> Iterator[httpx.Client]:
    """A client with a token, of the application on a port of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", headers=HEADERS) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def client(databases: Databases) -> Iterator[httpx.Client]:
    with open_pool(databases.url("indexing"), read_only=True) as pool, served(make_app(pool, TOKENS)) as client:
        yield client


def get(client: httpx.Client, path: str, **parameters: Any) -> list[dict[str, Any]]:
    response = client.get(f"/dicom-web{path}", params=parameters)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/dicom+json"
    found: list[dict[str, Any]] = response.json()
    return found


def uids(datasets: list[dict[str, Any]], tag: str = "0020000D") -> list[str]:
    return [dataset[tag]["Value"][0] for dataset in datasets]


# PS3.4 C.2.2.2, each type of matching with what it must find and must not.
STUDY_MATCHES = [
    ({}, ["1.1", "1.2", "1.3"]),
    ({"StudyInstanceUID": "1.2"}, ["1.2"]),
    ({"0020000d": "1.2"}, ["1.2"]),
    ({"StudyInstanceUID": "1.1,1.3,1.9"}, ["1.1", "1.3"]),
    ({"StudyInstanceUID": "1.1\\1.3"}, ["1.1", "1.3"]),
    ({"StudyDate": "20200115"}, ["1.1"]),
    ({"StudyDate": "2020.01.15"}, ["1.1"]),
    ({"StudyDate": "20200101-20201231"}, ["1.1", "1.2"]),
    ({"StudyDate": "20200630-20211231"}, ["1.2", "1.3"]),
    ({"StudyDate": "20200116-"}, ["1.2", "1.3"]),
    ({"StudyDate": "-20200630"}, ["1.1", "1.2"]),
    ({"StudyDate": "20190101-20191231"}, []),
    ({"StudyTime": "101500.25"}, ["1.1"]),
    ({"StudyTime": "101500.250"}, ["1.1"]),
    ({"StudyTime": "101500"}, []),
    ({"StudyTime": "10-11"}, ["1.1"]),
    ({"StudyTime": "1015-1015"}, ["1.1"]),
    ({"StudyTime": "-09"}, ["1.3"]),
    ({"StudyTime": "23:00-"}, ["1.2"]),
    ({"StudyDescription": "MR_Head"}, ["1.2"]),
    ({"StudyDescription": " MR_Head "}, ["1.2"]),
    ({"StudyDescription": "mr_head"}, []),
    ({"StudyDescription": "MR_*"}, ["1.2"]),
    ({"StudyDescription": "MR?Head"}, ["1.2"]),
    ({"StudyDescription": "M_?Head"}, []),
    ({"StudyDescription": "*100%"}, ["1.1"]),
    ({"StudyDescription": "%"}, []),
    ({"StudyDescription": "*"}, ["1.1", "1.2", "1.3"]),
    ({"StudyDescription": ""}, ["1.1", "1.2", "1.3"]),
    ({"StudyDescription": "ct*"}, []),
    ({"StudyDescription": "Elsewhere"}, []),
    ({"PatientName": "test^*"}, ["1.1", "1.2"]),
    ({"PatientName": "TEST^ANNA"}, ["1.1"]),
    ({"PatientName": "Test"}, []),
    ({"PatientID": "Subject0003"}, ["1.3"]),
    ({"PatientID": "Subject000?"}, ["1.1", "1.2", "1.3"]),
    ({"ModalitiesInStudy": "SR"}, ["1.1"]),
    ({"ModalitiesInStudy": "C?"}, ["1.1"]),
    ({"ModalitiesInStudy": "MG"}, []),
    ({"SOPClassesInStudy": CT}, ["1.1", "1.2", "1.3"]),
    ({"AccessionNumber": ""}, ["1.1", "1.2", "1.3"]),
    ({"AccessionNumber": "1"}, []),
    ({"PatientName": "test^*", "StudyDate": "20200201-"}, ["1.2"]),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "expected"), STUDY_MATCHES)
def test_studies_match_as_ps3_4_says(client: httpx.Client, keys: dict[str, str], expected: list[str]) -> None:
    assert uids(get(client, "/studies", **keys)) == expected


@pytest.mark.parametrize(
    ("path", "keys", "expected"),
    [
        ("/studies/1.1/series", {}, ["1.1.1", "1.1.2"]),
        ("/studies/1.1/series", {"Modality": "SR"}, ["1.1.2"]),
        ("/studies/1.1/series", {"SeriesNumber": "7"}, ["1.1.1"]),
        ("/studies/1.1/series", {"SeriesNumber": "07.0"}, ["1.1.1"]),
        ("/studies/1.1/series", {"SeriesDescription": "Rep*"}, ["1.1.2"]),
        ("/series", {"Modality": "?R"}, ["1.1.2", "1.2.1"]),
        ("/series", {"PatientID": "Subject0001"}, ["1.1.1", "1.1.2"]),
        ("/series", {"RequestAttributesSequence.ScheduledProcedureStepID": "STEP2"}, ["1.2.1"]),
        ("/series", {"00400275.00400009": "STEP3"}, []),
        ("/studies/9.9/series", {}, []),
    ],
)
def test_series_match(client: httpx.Client, path: str, keys: dict[str, str], expected: list[str]) -> None:
    assert uids(get(client, path, **keys), "0020000E") == expected


@pytest.mark.parametrize(
    ("path", "keys", "expected"),
    [
        ("/instances", {}, ["1.1.1.1", "1.1.1.2", "1.1.2.1", "1.2.1.1", "1.3.1.1"]),
        ("/studies/1.1/instances", {"InstanceNumber": "1"}, ["1.1.1.1", "1.1.2.1"]),
        ("/studies/1.1/series/1.1.1/instances", {"InstanceNumber": "2"}, ["1.1.1.2"]),
        ("/instances", {"SOPInstanceUID": "1.2.1.1,1.3.1.1"}, ["1.2.1.1", "1.3.1.1"]),
        ("/instances", {"ImageType": "PRIMARY"}, ["1.2.1.1"]),
        ("/instances", {"MagneticFieldStrength": "1.50"}, ["1.2.1.1"]),
        ("/instances", {"Rows": "512"}, ["1.1.1.1"]),
        ("/instances", {"Modality": "DX", "StudyDate": "20211231"}, ["1.3.1.1"]),
        ("/studies/1.1/series/1.2.1/instances", {}, []),
    ],
)
def test_instances_match(client: httpx.Client, path: str, keys: dict[str, str], expected: list[str]) -> None:
    assert uids(get(client, path, **keys), "00080018") == expected


def test_a_study_has_the_attributes_of_table_10_6_3_3(client: httpx.Client) -> None:
    (study,) = get(client, "/studies", StudyInstanceUID="1.1")
    assert study == {
        "00080020": element("DA", "20200115"),
        "00080030": element("TM", "101500.25"),
        "00080050": {"vr": "SH"},
        "00080056": element("CS", "UNAVAILABLE"),
        "00080061": element("CS", "CT", "SR"),
        "00080090": {"vr": "PN"},
        "00100010": element("PN", {"Alphabetic": "Test^Anna"}),
        "00100020": element("LO", "Subject0001"),
        "00100030": {"vr": "DA"},
        "00100040": element("CS", "F"),
        "0020000D": element("UI", "1.1"),
        "00200010": {"vr": "SH"},
        "00201206": element("IS", 2),
        "00201208": element("IS", 3),
    }


def test_a_series_has_the_attributes_of_table_10_6_3_4(client: httpx.Client) -> None:
    (report,) = get(client, "/studies/1.1/series", Modality="SR")
    assert report == {
        "00080056": element("CS", "UNAVAILABLE"),
        "00080060": element("CS", "SR"),
        "0008103E": element("LO", "Report"),
        "0020000D": element("UI", "1.1"),
        "0020000E": element("UI", "1.1.2"),
        "00200011": {"vr": "IS"},
        "00201209": element("IS", 1),
    }
    (alone,) = get(client, "/series", Modality="SR")
    assert alone.keys() >= {"00080020", "00201206", "00201208", "00100020"}, "a search for all series returns the study's attributes too"


def test_an_instance_has_the_attributes_of_table_10_6_3_5(client: httpx.Client) -> None:
    (instance,) = get(client, "/studies/1.1/series/1.1.1/instances", SOPInstanceUID="1.1.1.1")
    assert instance == {
        "00080016": element("UI", CT),
        "00080018": element("UI", "1.1.1.1"),
        "00080056": element("CS", "UNAVAILABLE"),
        "0020000D": element("UI", "1.1"),
        "0020000E": element("UI", "1.1.1"),
        "00200013": element("IS", 1),
        "00280010": element("US", 512),
    }
    (alone,) = get(client, "/instances", SOPInstanceUID="1.1.1.1")
    assert alone.keys() >= {"00080020", "00080060", "00200011", "00201209"}


def test_includefield_adds_what_belongs_to_the_level(client: httpx.Client) -> None:
    (study,) = get(client, "/studies", StudyInstanceUID="1.1", includefield="StudyDescription,Modality,00100040")
    assert study["00081030"] == element("LO", "CT Thorax 100%")
    assert "00080060" not in study, "an attribute of the series came with a study"
    (series,) = get(client, "/studies/1.1/series", Modality="SR", includefield=["StudyDescription", "InstanceNumber"])
    assert series["00081030"] == element("LO", "CT Thorax 100%")
    assert "00200013" not in series
    (instance,) = get(client, "/instances", SOPInstanceUID="1.2.1.1", includefield="all")
    assert instance["00180087"] == element("DS", 1.5)
    assert instance["00400275"]["Value"][1] == {"00400009": element("SH", "STEP2")}
    (matched,) = get(client, "/studies", StudyDescription="MR*")
    assert "00081030" in matched, "an attribute that was matched is returned"


def test_pages_hold_everything_once_and_in_order(client: httpx.Client) -> None:
    pages = [uids(get(client, "/instances", limit=2, offset=offset), "00080018") for offset in (0, 2, 4, 6)]
    assert pages == [["1.1.1.1", "1.1.1.2"], ["1.1.2.1", "1.2.1.1"], ["1.3.1.1"], []]
    assert get(client, "/instances", limit=0) == []


def test_the_servers_own_maximum_is_told_the_askers_is_not(databases: Databases) -> None:
    with open_pool(databases.url("indexing"), read_only=True) as pool, served(make_app(pool, TOKENS, most_results=2)) as client:
        response = client.get("/dicom-web/instances")
        assert len(response.json()) == 2
        assert "exceeded the maximum" in response.headers["warning"]
        assert "warning" not in client.get("/dicom-web/instances", params={"limit": "1"}).headers


@pytest.mark.parametrize(
    ("path", "keys", "warning"),
    [
        ("/studies", {"fuzzymatching": "true"}, "fuzzymatching parameter is not supported. Only literal matching has been performed."),
        ("/studies", {"emptyvaluematching": "true"}, "emptyvaluematching"),
        ("/studies", {"Modality": "CT"}, "Modality is no key of a search for studies"),
        ("/series", {"InstanceNumber": "1"}, "InstanceNumber"),
        ("/instances", {"00091001": "x"}, "private"),
        ("/instances", {"AcquisitionDateTime": "2020-2021"}, "AcquisitionDateTime"),
        ("/instances", {"ReferencedImageSequence": "x"}, "VR SQ"),
        ("/studies", {"includefield": "00091001"}, "private"),
    ],
)
def test_what_is_not_supported_is_ignored_and_told(client: httpx.Client, path: str, keys: dict[str, str], warning: str) -> None:
    response = client.get(f"/dicom-web{path}", params=keys)
    assert response.status_code == 200
    assert len(response.json()) == len(client.get(f"/dicom-web{path}").json())
    assert response.headers["warning"].startswith(f"299 {client.base_url}/dicom-web: ")
    assert warning in response.headers["warning"]


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/studies", {"StudyDat": "2020"}),
        ("/studies", {"StudyDate": "2020"}),
        ("/studies", {"StudyDate": "20200230"}),
        ("/studies", {"StudyDate": "20210101-20200101"}),
        ("/studies", {"StudyDate": "-"}),
        ("/studies", {"StudyTime": "2500"}),
        ("/studies", {"StudyInstanceUID": "1.2.*"}),
        ("/studies", {"StudyInstanceUID": "1.2;DROP TABLE studies"}),
        ("/studies", {"StudyDescription": "a\\b"}),
        ("/studies", {"StudyDescription": "a\0"}),
        ("/series", {"SeriesNumber": "one"}),
        ("/series", {"SeriesNumber": "1e999999"}),
        ("/studies", {"limit": "-1"}),
        ("/studies", {"limit": ["1", "2"]}),
        ("/studies", {"offset": "x"}),
        ("/studies", {"fuzzymatching": "yes"}),
        ("/studies", {"includefield": ["all", "StudyDate"]}),
        ("/studies", {"StudyDate": ["20200101", "20200102"]}),
        ("/studies", {"StudyDate": "20200101", "00080020": "20200102"}),
        ("/studies/x/series", {}),
    ],
)
def test_a_bad_request_is_400_and_says_why(client: httpx.Client, path: str, keys: dict[str, Any]) -> None:
    response = client.get(f"/dicom-web{path}", params=keys)
    assert response.status_code == 400, response.text
    assert response.headers["content-type"].startswith("text/plain")
    assert len(response.text) > 20


@pytest.mark.parametrize(
    ("accept", "status", "kind"),
    [
        ("application/dicom+json", 200, "application/dicom+json"),
        ("*/*", 200, "application/dicom+json"),
        ("application/json", 200, "application/json"),
        ("text/html, application/dicom+json;q=0.5", 200, "application/dicom+json"),
        ('multipart/related; type="application/dicom+xml"', 406, "text/plain; charset=utf-8"),
        ("application/dicom+json;q=0", 406, "text/plain; charset=utf-8"),
    ],
)
def test_the_media_type_is_negotiated(client: httpx.Client, accept: str, status: int, kind: str) -> None:
    response = client.get("/dicom-web/studies", headers={"Accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (status, kind)
    assert client.get("/dicom-web/studies", params={"accept": accept}).status_code == status


@pytest.mark.parametrize("path", ["/", "/dicom-web/studies", "/docs", "/openapi.json", "/nowhere", "/livez"])
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", f"Basic {TOKEN}", TOKEN, f"Bearer {DIGEST}"])
def test_without_a_token_every_path_answers_401_and_why(client: httpx.Client, path: str, header: str | None) -> None:
    response = client.get(path, headers={"Authorization": header} if header is not None else {"Authorization": ""})
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert "bearer token" in response.text


def test_without_a_tokens_file_nobody_gets_in(databases: Databases) -> None:
    with open_pool(databases.url("indexing"), read_only=True) as pool, served(make_app(pool, load_tokens(None, TOKENS_FILE))) as client:
        response = client.get("/dicom-web/studies")
    assert response.status_code == 401
    assert "HUB_QIDO_TOKENS_FILE" in response.text


@pytest.mark.parametrize("text", ["", "[]", '{"viewer": "plain"}'])
def test_a_tokens_file_that_is_none_stops_the_process(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokens.json").write_text(text)
    with pytest.raises(StopProcess, match="HUB_QIDO_TOKENS_FILE"):
        load_tokens(tmp_path / "tokens.json", TOKENS_FILE)


def test_other_methods_and_paths_are_refused(client: httpx.Client) -> None:
    assert client.post("/dicom-web/studies").status_code == 405
    assert client.get("/docs").status_code == 404
    assert client.get("/openapi.json").status_code == 404


def test_a_database_that_is_away_is_503() -> None:
    pool: ConnectionPool[Connection[TupleRow]] = ConnectionPool(
        "postgresql://indexing@127.0.0.1:1/hub", min_size=0, max_size=1, timeout=0.5, open=False, kwargs={"connect_timeout": 1}
    )
    with pool, served(make_app(pool, TOKENS)) as client:
        response = client.get("/dicom-web/studies")
    assert response.status_code == 503
    assert response.headers["retry-after"]


def test_the_process_answers_on_loopback_and_stops_on_sigterm(databases: Databases, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({"viewer": DIGEST}))
    environment = os.environ | {
        "HUB_DATABASE_URL": databases.url("indexing"),
        "HUB_QIDO_PORT": "0",
        "HUB_QIDO_TOKENS_FILE": str(tokens),
        "HUB_LOG_STRICT": "true",
    }
    process = subprocess.Popen([sys.executable, "-m", "hub_indexing.api"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        ports: dict[str, int] = {}
        for line in process.stderr:
            entry = json.loads(line)
            if "port" in entry:
                ports[entry["event"]] = entry["port"]
            if "answering searches" in ports:
                break
        base = f"http://127.0.0.1:{ports['answering searches']}"
        assert httpx.get(f"{base}/dicom-web/studies", headers=HEADERS).json()
        assert httpx.get(f"{base}/dicom-web/studies").status_code == 401
        health = f"http://127.0.0.1:{ports['started']}"
        deadline = time.monotonic() + 10
        while httpx.get(f"{health}/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(15) == 0, rest
        assert "1.1" not in rest.replace("127.0.0.1", ""), "a UID stands in the log"
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
