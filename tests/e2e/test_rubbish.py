"""Bad input gets a clear answer at its sender and a reason at the hub, and harms nobody else."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.uid import UID, ExplicitVRLittleEndian, RawDataStorage
from support.cohort import Cohort, signatures
from support.dicom_files import SyntheticPatient, synthetic_series, write_series
from support.exported import Exported, create, download
from support.hub import Hub, send, wait_for
from support.senders import Peer, Rejected
from support.senders import send as send_as

PRIVATE_STORAGE = UID("1.2.826.0.1.3680043.9.7777.1.1")


def peer(hub: Hub, calling: str) -> Peer:
    return Peer(hub.endpoints["receiver"]["port"], calling=calling)


def synthetic(folder: Path, study: str, instances: int = 1) -> list[Path]:
    return write_series(folder, synthetic_series(SyntheticPatient("RUBBISH^TEST", "RUB-1"), study=study, instances=instances))


def metrics(hub: Hub) -> str:
    return httpx.get(f"{hub.endpoints['services']['receiver']['health']}/metrics").text


def reasons(hub: Hub) -> dict[str, int]:
    return {row["reason"]: row["instances"] for row in hub.json("status")["quarantine"] if row["trust"] == "southmere"}


@pytest.fixture
def rubbish(tmp_path: Path) -> Path:
    """File meta of a CT, and noise where the data set should be."""
    path = synthetic(tmp_path / "whole", "rubbish")[0]
    whole = path.read_bytes()
    start = whole.index(b"DICM") + 4 + 12 + int.from_bytes(whole[140:144], "little")
    noise = tmp_path / "noise.dcm"
    noise.write_bytes(whole[:start] + b"\xff" * 5000)
    return noise


def test_rubbish_is_refused_with_its_reason(hub: Hub, peaceful: Exported, rubbish: Path) -> None:
    answer = send_as(peer(hub, "SOUTHMERE"), [rubbish])[0]
    assert answer.status
    assert answer.status >> 12 == 0xC
    assert answer.comment
    assert "hub_receiver_refusals_total{" in metrics(hub)
    assert any('trust="southmere"' in line and "C0" in line.upper() for line in metrics(hub).splitlines() if "refusals_total{" in line)


def test_a_header_cut_short_is_refused(hub: Hub, peaceful: Exported, tmp_path: Path) -> None:
    whole = synthetic(tmp_path, "cut header")[0]
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(whole.read_bytes()[:500])
    answer = send_as(peer(hub, "SOUTHMERE"), [cut])[0]
    assert answer.status
    assert answer.status >> 12 == 0xC


def test_pixels_cut_short_are_taken_in_and_held_back(hub: Hub, peaceful: Exported, tmp_path: Path) -> None:
    whole = synthetic(tmp_path, "cut pixels")[0]
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(whole.read_bytes()[:-1000])
    before = reasons(hub)
    answer = send_as(peer(hub, "SOUTHMERE"), [cut])[0]
    if answer.status == 0:
        wait_for(lambda: reasons(hub) != before, 60, "nothing was held back")
        new = {reason for reason, count in reasons(hub).items() if count > before.get(reason, 0)}
        assert new <= {"cannot-be-parsed", "pixel-data-length"}
    else:
        assert answer.status
        assert answer.status >> 12 == 0xC


def test_a_class_that_cannot_be_deidentified_is_held_back_and_a_private_one_is_not_negotiated(
    hub: Hub, peaceful: Exported, cohort: Cohort, tmp_path: Path
) -> None:
    raw = pydicom.dcmread(synthetic(tmp_path / "raw", "raw data")[0])
    raw.SOPClassUID = raw.file_meta.MediaStorageSOPClassUID = RawDataStorage
    raw.save_as(tmp_path / "raw.dcm")
    before = reasons(hub).get("sop-class-not-handled", 0)
    assert send_as(peer(hub, "SOUTHMERE"), [tmp_path / "raw.dcm"])[0].status == 0
    wait_for(lambda: reasons(hub).get("sop-class-not-handled", 0) == before + 1, 60, lambda: str(reasons(hub)))
    private = pydicom.dcmread(synthetic(tmp_path / "private", "private")[0])
    private.SOPClassUID = private.file_meta.MediaStorageSOPClassUID = PRIVATE_STORAGE
    private.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    private.save_as(tmp_path / "private.dcm")
    refused, taken = send_as(peer(hub, "SOUTHMERE"), [tmp_path / "private.dcm", cohort.files["SOUTHMERE"][0]])
    assert refused.status is None
    assert refused.comment == "no accepted presentation context"
    assert taken.status == 0


def test_a_stranger_is_rejected_with_the_reason_that_the_standard_has(hub: Hub, peaceful: Exported, cohort: Cohort) -> None:
    with pytest.raises(Rejected) as stranger:
        send_as(peer(hub, "STRANGER"), cohort.all[:1])
    assert stranger.value.code == (1, 1, 3)
    with pytest.raises(Rejected) as wrong:
        send_as(Peer(hub.endpoints["receiver"]["port"], calling="NORTHGATE", called="OTHERHUB"), cohort.all[:1])
    assert wrong.value.code == (1, 1, 7)


def test_everybody_elses_studies_are_unharmed(hub: Hub, peaceful: Exported, cohort: Cohort, rubbish: Path, tmp_path: Path) -> None:
    before = hub.indexed()
    create(hub, "before-rubbish")
    sound = download(hub, "before-rubbish", 1, tmp_path / "before")
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(send_as, peer(hub, "SOUTHMERE"), [rubbish] * 20)
        good = pool.submit(send, hub, "NORTHGATE", cohort.files["NORTHGATE"])
        assert all(answer.status and answer.status >> 12 == 0xC for answer in bad.result())
        assert good.result().returncode == 0
    wait_for(lambda: {group["records"] for group in hub.json("status")["lag"].values()} == {0}, 60, "the hub did not come to rest")
    assert hub.indexed() == before
    create(hub, "after-rubbish")
    after = download(hub, "after-rubbish", 1, tmp_path / "after")
    assert signatures(map(pydicom.dcmread, after.images)) == signatures(map(pydicom.dcmread, sound.images))
