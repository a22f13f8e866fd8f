"""Planted identifiers: in no research object, no event, no report, no log line, whatever the transfer syntax."""

import gzip
import io

import pytest
import structlog
from hub_events import encode
from hub_runtime.logs import configure_logging
from pydicom import dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian
from support.deidentified import Zone
from support.planted import Planted, found_needles, kept_syntaxes, planted_study


def everything_said(zone: Zone, planted: Planted, at: str) -> bytes:
    """All that leaves the handler: research objects (metadata inflated), events with keys and headers, reports, the log."""
    log = io.StringIO()
    configure_logging("deidentification", strict=True, stream=log)
    try:
        events = zone.handle(zone.receive(at, [file.content for file in planted.files]))
    finally:
        structlog.reset_defaults()
        configure_logging("tests")
    parts: list[bytes] = [log.getvalue().encode()]
    assert parts[0]
    for event in events:
        key, value, headers = encode(event)
        parts += [key, value, *(content for _, content in headers)]
    for bucket, prefix in (("research", ""), ("identifiable", "quarantine/")):
        for info in zone.store.list(bucket, prefix):
            content = zone.store.get(bucket, info.key)
            parts += [info.key.encode(), content, gzip.decompress(content) if info.key.endswith(".gz") else b""]
    return b"\n".join(parts)


@pytest.mark.parametrize("syntax", list(kept_syntaxes()), ids=lambda uid: uid.name)
@pytest.mark.parametrize("seed", range(4))
def test_no_needle_is_found(seed: int, syntax: UID) -> None:
    zone = Zone()
    planted = planted_study(seed, modality=("CT", "MR", "CR", "PT")[seed], transfer_syntax=syntax, in_uids=True)
    said = everything_said(zone, planted, "southmere")
    assert found_needles(said, planted.needles) == []
    assert len(list(zone.store.list("research", "instances/"))) == len(planted.files)


def test_no_needle_is_found_where_patient_id_is_the_national_number() -> None:
    zone = Zone()
    planted = planted_study(9, issuer="NHS", national=True, in_uids=True)
    assert found_needles(everything_said(zone, planted, "northgate"), planted.needles) == []


def test_no_needle_is_in_what_is_said_of_quarantine() -> None:
    zone = Zone()
    planted = planted_study(5, modality="US")
    said = everything_said(zone, planted, "southmere")
    assert found_needles(said, planted.needles) == []
    assert b"burned-in-risk" in said


def test_pixels_are_untouched() -> None:
    zone = Zone()
    planted = planted_study(6)
    answer = zone.run(zone.receive("southmere", [file.content for file in planted.files]))
    before = {dcmread(io.BytesIO(file.content)).InstanceNumber: dcmread(io.BytesIO(file.content)).PixelData for file in planted.files}
    for instance in answer.manifest.instances:
        result = dcmread(io.BytesIO(zone.store.get("research", instance.key)))
        assert result.PixelData == before[result.InstanceNumber]


@pytest.mark.parametrize("syntax", list(kept_syntaxes()), ids=lambda uid: uid.name)
def test_the_needles_are_really_there(syntax: UID) -> None:
    """The search itself: it must find in the source what it must not find in the result."""
    planted = planted_study(2, transfer_syntax=syntax, in_uids=True)
    for file in planted.files:
        found = found_needles(file.content, planted.needles)
        assert len(found) >= (5 if syntax.is_deflated else len(planted.needles)), set(planted.needles) - set(found)


def test_the_search_finds_every_encoding_and_case() -> None:
    for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
        assert found_needles(b"xx" + "Müllerström".encode(encoding), ["MÜLLERSTRÖM"]) == ["MÜLLERSTRÖM"]
    assert found_needles("Szczepański".encode(), ["SZCZEPAŃSKI"]) == ["SZCZEPAŃSKI"]
    assert found_needles(b"nothing", ["Müllerström"]) == []


def test_the_same_seed_gives_the_same_files() -> None:
    assert planted_study(3) == planted_study(3)
    assert planted_study(3).files[0].content != planted_study(4).files[0].content
    assert planted_study(3, transfer_syntax=ExplicitVRLittleEndian) == planted_study(3)
