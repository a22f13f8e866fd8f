"""What STOW-RS answers, without a network and on fakes for store and bus."""

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import httpx
import pytest
from hub_dicom import Trusts, read_file_meta
from hub_dicom.synthetic import SyntheticInstance, SyntheticPatient, synthetic_series
from hub_events import Event
from hub_events.types import InstanceReceived
from hub_ingest.arrival import Arrival
from hub_ingest.intake import Call, Intake
from hub_ingest.stow import METRICS, Stow
from hub_ingest.stow_response import Result, http_status, negotiate
from hub_ingest.stow_settings import StowSettings
from hub_objectstore import MemoryObjectStore
from hub_runtime import BrokerUnavailable, Health, Metrics
from pydicom import Dataset, dcmread, dcmwrite

CT = "1.2.840.10008.5.1.4.1.1.2"
TOKEN = "a token of a test"
JSON = "application/dicom+json"
TRUSTS = Trusts.model_validate(
    {
        "trusts": [
            {"name": "northgate", "ae_titles": ["NORTHGATE"], "addresses": ["127.0.0.1/32"], "assigning_authority": "RNG"},
            {"name": "elsewhere", "ae_titles": ["ELSEWHERE"], "addresses": ["192.0.2.0/24"], "assigning_authority": "REL"},
        ]
    }
)


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Bus:
    """Keeps events; away from the `away_from`-th on."""

    def __init__(self) -> None:
        self.events: list[Event[InstanceReceived]] = []
        self.away_from = 1_000_000
        self.asked = 0

    def produce(self, *events: Event[InstanceReceived]) -> None:
        self.asked += 1
        if self.asked > self.away_from:
            raise BrokerUnavailable("away")
        self.events.extend(events)


class Hub:
    """STOW-RS in this process."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        needed = {"kafka_bootstrap_servers": "x", "s3_endpoint": "http://x", "s3_access_key": "a", "s3_secret_key": "b"}
        self.store, self.bus, self.health, self.metrics, self.folder = MemoryObjectStore(), Bus(), Health(), Metrics(METRICS), folder
        self.stow = Stow(
            StowSettings.model_validate(needed | settings),
            TRUSTS,
            Intake(self.store, self.bus, source="ingest.stow", origin="stow-rs"),
            health=self.health,
            metrics=self.metrics,
            folder=folder,
        )
        tokens = {digest(TOKEN): "northgate", digest("far"): "elsewhere", digest("gone"): "nobody"}
        self.app = self.stow.app(tokens)

    def post(
        self,
        parts: Sequence[bytes] | None = None,
        *,
        content: bytes | AsyncIterator[bytes] | None = None,
        path: str = "",
        token: str | None = TOKEN,
        **headers: str,
    ) -> httpx.Response:
        sent = {"content-type": 'multipart/related; type="application/dicom"; boundary=b'} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        if token is not None:
            sent["authorization"] = f"Bearer {token}"

        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
                return await client.post(
                    f"/dicom-web/studies{path}", content=content if content is not None else multipart(parts or []), headers=sent
                )

        return asyncio.run(run())

    def keys(self) -> list[str]:
        return [info.key for info in self.store.list("identifiable", "")]


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path)


def multipart(parts: Sequence[bytes]) -> bytes:
    return b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


def series(instances: int = 1, study: str = "unit") -> list[SyntheticInstance]:
    return list(synthetic_series(SyntheticPatient("SYNTHETIC^STOW", "S-1"), study=study, instances=instances))


def answered(response: httpx.Response) -> Dataset:
    assert response.headers["content-type"] == JSON
    return Dataset.from_json(response.json())


def reasons(data_set: Dataset, keyword: str = "FailedSOPSequence") -> list[int]:
    return [item.FailureReason for item in data_set.get(keyword, [])]


def stored(data_set: Dataset) -> list[str]:
    return [item.ReferencedSOPInstanceUID for item in data_set.get("ReferencedSOPSequence", [])]


def test_all_stored_is_200_and_named(hub: Hub) -> None:
    instances = series(5)
    response = hub.post([one.content for one in instances])
    assert response.status_code == 200
    found = answered(response)
    assert stored(found) == [one.sop_instance_uid for one in instances]
    assert {item.ReferencedSOPClassUID for item in found.ReferencedSOPSequence} == {CT}
    assert not found.RetrieveURL
    assert "FailedSOPSequence" not in found
    assert {(event.source, event.data.origin) for event in hub.bus.events} == {("ingest.stow", "stow-rs")}
    assert {event.data.object.key for event in hub.bus.events} == set(hub.keys())
    assert len(hub.keys()) == 5
    assert len({event.trace_id for event in hub.bus.events}) == 1


def test_the_same_object_as_by_c_store_and_again_the_same(hub: Hub) -> None:
    (instance,) = series()
    meta = read_file_meta(instance.content)
    data_set = instance.content[meta.data_set_offset :]
    foreign = Dataset()
    foreign.preamble = bytes(range(128))
    foreign.file_meta = dcmread(io.BytesIO(instance.content)).file_meta
    foreign.file_meta.add_new("ImplementationVersionName", "SH", "SOMEBODY_ELSE")
    foreign.file_meta.add_new("PrivateInformationCreatorUID", "UI", "1.2.3")
    foreign.file_meta.add_new("PrivateInformation", "OB", bytes(5000))
    buffer = io.BytesIO()
    dcmwrite(buffer, foreign)
    for _ in range(2):
        assert hub.post([buffer.getvalue() + data_set]).status_code == 200
    over_c_store = MemoryObjectStore()
    Intake(over_c_store, Bus(), source="ingest.receiver", origin="c-store").take(
        Call(TRUSTS.trusts[0]), Arrival(CT, instance.sop_instance_uid, meta.transfer_syntax_uid, io.BytesIO(data_set), len(data_set))
    )
    (key,) = hub.keys()
    assert [info.key for info in over_c_store.list("identifiable", "")] == [key]
    assert over_c_store.get("identifiable", key) == hub.store.get("identifiable", key)
    assert len(hub.bus.events) == 2


def test_large_parts_wait_in_a_file_without_a_name(tmp_path: Path) -> None:
    hub = Hub(tmp_path, stow_memory_bytes=1000)
    assert hub.post([one.content for one in series(3)]).status_code == 200
    assert len(hub.keys()) == 3
    assert list(tmp_path.iterdir()) == []


def test_some_stored_is_202_and_each_failure_has_its_reason(hub: Hub) -> None:
    good, cut = series(2)
    meta = read_file_meta(good.content)
    no_such_class = good.content.replace(CT.encode(), b"1.2.840.10008.5.1.4.1.9.9", 1)
    other_class = good.content.replace(CT.encode() + b"\0", b"1.2.840.10008.5.1.4.1.1.4\0", 1)
    other_syntax = good.content.replace(meta.transfer_syntax_uid.encode(), b"1.2.840.10008.1.2.9", 1)
    response = hub.post([good.content, cut.content[:-10], no_such_class, other_class, other_syntax, b"rubbish", b""])
    assert response.status_code == 202
    found = answered(response)
    assert stored(found) == [good.sop_instance_uid]
    assert reasons(found) == [0xC000, 0x0122, 0xA900, 0xC122]
    assert found.FailedSOPSequence[0].ReferencedSOPInstanceUID == cut.sop_instance_uid
    assert reasons(found, "OtherFailuresSequence") == [0xC000, 0xC000]
    assert len(hub.keys()) == len(hub.bus.events) == 1


def test_nothing_stored_is_409(hub: Hub) -> None:
    response = hub.post([series()[0].content[:-10]])
    assert (response.status_code, reasons(answered(response)), hub.keys()) == (409, [0xC000], [])


def test_instances_of_another_study_than_the_urls_are_refused(hub: Hub) -> None:
    mine, other = series(study="mine")[0], series(study="other")[0]
    path = f"/{mine.study_instance_uid}"
    response = hub.post([mine.content, other.content], path=path)
    assert response.status_code == 202
    found = answered(response)
    assert (stored(found), reasons(found)) == ([mine.sop_instance_uid], [0xA901])
    assert hub.post([other.content], path=path).status_code == 409
    assert len(hub.keys()) == 1
    assert hub.post([mine.content], path="/not-a-uid").status_code == 400


def test_too_large_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    first, second = series(2)
    hub = Hub(tmp_path, stow_maximum_bytes=len(first.content))
    response = hub.post([first.content + bytes(1000), second.content])
    assert (response.status_code, reasons(answered(response))) == (202, [0xC000])


def test_a_broker_that_goes_away_leaves_what_was_stored_named(hub: Hub) -> None:
    hub.bus.away_from = 2
    instances = series(8)
    response = hub.post([one.content for one in instances])
    assert response.status_code == 202
    found = answered(response)
    assert len(stored(found)) == 2
    assert reasons(found) == [0xA700] * 6
    assert {item.ReferencedSOPInstanceUID for item in found.FailedSOPSequence} == {
        one.sop_instance_uid for one in instances if one.sop_instance_uid not in stored(found)
    }
    assert hub.bus.asked <= 5, "nobody is asked again and again in one request"


def test_a_store_that_is_away_is_503_with_retry_after(hub: Hub) -> None:
    hub.store.away = True
    response = hub.post([one.content for one in series(6)])
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert set(reasons(answered(response))) == {0xA700}
    hub.store.away = False
    hub.health.unready("store", "away")
    response = hub.post([series()[0].content])
    assert (response.status_code, response.headers["content-type"]) == (503, "text/plain; charset=utf-8")
    assert int(response.headers["retry-after"]) > 0
    assert hub.keys() == []
    hub.health.ready("store")
    assert hub.post([one.content for one in series(6)]).status_code == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"", 400), (b"--b--", 400), (b"--c\r\n\r\nx\r\n--c--", 400), (b"--b\r\nno field\r\n\r\n", 400), (b"--b\r\n\r\nsome", 400)],
)
def test_a_body_that_is_none_is_400(hub: Hub, content: bytes, status: int) -> None:
    response = hub.post(content=content)
    assert response.status_code == status
    assert response.headers["content-type"].startswith("text/plain")


def test_a_body_that_breaks_off_after_a_part_is_202_and_says_both(hub: Hub) -> None:
    first, second = series(2)
    response = hub.post(content=multipart([first.content, second.content])[: -len(second.content)])
    assert response.status_code == 202
    found = answered(response)
    assert (stored(found), reasons(found, "OtherFailuresSequence")) == ([first.sop_instance_uid], [0xC000])
    assert len(hub.keys()) == 1


def test_a_sender_that_stops_is_not_waited_for(tmp_path: Path) -> None:
    hub = Hub(tmp_path, stow_idle_seconds=0.2)
    (instance,) = series()

    async def slow() -> AsyncIterator[bytes]:
        yield multipart([instance.content])[:1000]
        await asyncio.sleep(5)

    assert hub.post(content=slow()).status_code == 400


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/dicom", 415),
        ("multipart/form-data; boundary=b", 415),
        ('multipart/related; type="application/dicom+json"; boundary=b', 415),
        ('multipart/related; type="application/dicom"', 400),
        ('multipart/related; type="application/dicom"; boundary=""', 400),
        ("", 415),
        ("multipart/related; boundary=b", 200),
    ],
)
def test_the_media_type_of_the_request(hub: Hub, content_type: str, status: int) -> None:
    assert hub.post([series()[0].content], content_type=content_type).status_code == status


def test_an_encoded_body_and_parts_that_are_no_instances_are_415(hub: Hub) -> None:
    assert hub.post([b"x"], content_encoding="gzip").status_code == 415
    metadata = b"--b\r\nContent-Type: application/dicom+json\r\n\r\n[]\r\n--b--"
    assert hub.post(content=metadata).status_code == 415


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/json", JSON),
        ("application/dicom+xml", "application/dicom+xml"),
        ("application/dicom+xml;q=0.2, application/dicom+json;q=0.1", "application/dicom+xml"),
        ("application/dicom+json;q=0, */*", "application/dicom+xml"),
        ("text/html", None),
        ("application/dicom+json;q=0", None),
        ("application/dicom+json;q=much", None),
    ],
)
def test_what_is_answered_with(accept: str | None, media_type: str | None) -> None:
    assert negotiate(accept) == media_type


def test_xml_says_the_same(hub: Hub) -> None:
    good = series()[0]
    response = hub.post([good.content, b"rubbish"], accept="application/dicom+xml")
    assert (response.status_code, response.headers["content-type"]) == (202, "application/dicom+xml")
    space = {"n": "http://dicom.nema.org/PS3.19/models/NativeDICOM"}
    root = ET.fromstring(response.content)
    uid = root.find(".//n:DicomAttribute[@keyword='ReferencedSOPSequence']/n:Item/n:DicomAttribute[@tag='00081155']/n:Value", space)
    assert uid is not None
    assert uid.text == good.sop_instance_uid
    reason = root.find(".//n:DicomAttribute[@keyword='OtherFailuresSequence']/n:Item/n:DicomAttribute[@tag='00081197']/n:Value", space)
    assert reason is not None
    assert reason.text == str(0xC000)
    assert hub.post([good.content], accept="image/png").status_code == 406


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("wrong", 401), (digest(TOKEN), 401), ("far", 403), ("gone", 403)])
def test_who_does_not_belong_is_told_so_in_plain_text(hub: Hub, token: str | None, status: int) -> None:
    response = hub.post([series()[0].content], token=token)
    assert (response.status_code, hub.keys()) == (status, [])
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert "token" in response.text


def test_more_requests_than_there_is_room_for_are_asked_to_come_again(tmp_path: Path) -> None:
    hub = Hub(tmp_path, stow_requests_per_trust=1)
    (instance,) = series()
    inner: list[httpx.Response] = []

    async def both() -> AsyncIterator[bytes]:
        text = multipart([instance.content])
        yield text[:500]
        inner.append(await asyncio.to_thread(hub.post, [instance.content]))
        yield text[500:]

    assert hub.post(content=both()).status_code == 200
    assert [one.status_code for one in inner] == [503]
    assert "retry-after" in inner[0].headers
    assert hub.post([instance.content]).status_code == 200


def test_the_log_and_metrics_name_nobody(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    instance = series()[0]
    hub.post([instance.content, instance.content[:-10]], path=f"/{instance.study_instance_uid}")
    hub.post([instance.content], path="/1.2.3")
    said = capfd.readouterr().err + hub.metrics.text().decode()
    assert "instance refused" in said
    for secret in (instance.study_instance_uid, instance.sop_instance_uid, "SYNTHETIC", TOKEN, "1.2.3"):
        assert secret not in said


def test_the_status_follows_from_the_results() -> None:
    good, bad, away = Result("1", "2", 0), Result("1", "2", 0xC000, "x"), Result("1", "2", 0xA700, "x", passing=True)
    table = {(good,): 200, (good, bad): 202, (good, away): 202, (bad,): 409, (away,): 503, (bad, away): 503, (): 400}
    assert {results: http_status(results, malformed=False) for results in table} == table
    assert [http_status(results, malformed=True) for results in ((good,), (bad,), ())] == [202, 400, 400]


def test_json_is_one_object(hub: Hub) -> None:
    assert isinstance(json.loads(hub.post([series()[0].content]).content), dict)
