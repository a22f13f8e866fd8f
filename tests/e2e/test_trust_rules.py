"""What a trust's rules do not want is acknowledged, held back with its reason and missing from the dataset; the rest of the study is there."""

import json
from pathlib import Path

import pydicom
from pydicom.uid import UID
from support.cohort import signatures
from support.dicom_files import SyntheticPatient, nhs_test_number, synthetic_series, write_series
from support.exported import create, download
from support.hub import Hub, wait_for
from support.senders import Peer, send

STUDY = "rules e2e"
PATIENT = SyntheticPatient("SYNTHETIC^RULES", "W-1")
TEST_PATIENT = SyntheticPatient("ZZZTEST^WARD", nhs_test_number(815))
PRIVATE = UID("1.2.826.0.1.3680043.9.7777.1.1")


def quarantine(hub: Hub) -> dict[str, int]:
    return {row["reason"]: row["instances"] for row in hub.json("status")["quarantine"] if row["trust"] == "westhaven"}


def test_a_study_with_what_is_not_wanted_in_it(hub: Hub, tmp_path: Path) -> None:
    good = write_series(tmp_path / "good", synthetic_series(PATIENT, study=STUDY, instances=4))
    unwanted = write_series(tmp_path / "mr", synthetic_series(PATIENT, study=STUDY, series=2, modality="MR", instances=1))
    nobody = write_series(tmp_path / "nobody", synthetic_series(TEST_PATIENT, study=STUDY, series=3, instances=1))
    private = write_series(tmp_path / "private", synthetic_series(PATIENT, study=STUDY, series=4, instances=1))
    data_set = pydicom.dcmread(private[0])
    data_set.SOPClassUID = data_set.file_meta.MediaStorageSOPClassUID = PRIVATE
    data_set.save_as(private[0])
    # The fourth good one comes again with other pixels: nobody has said which is right, so neither goes on.
    conflict = tmp_path / "conflict.dcm"
    data_set = pydicom.dcmread(good[3])
    data_set.PixelData = bytes(len(data_set.PixelData))
    data_set.save_as(conflict)

    sender = Peer(hub.endpoints["receiver"]["port"], calling="WESTHAVEN")
    sent = send(sender, [good[0], *unwanted, *nobody, *private, *good[1:], conflict])
    assert [one.status for one in sent] == [0] * 8, "none of it is a failure to its sender"

    expected = {"modality-not-wanted": 1, "test-patient": 1, "private-sop-class": 1, "variant-conflict": 2}
    wait_for(lambda: quarantine(hub) == expected, 90, lambda: json.dumps(quarantine(hub)))
    wait_for(lambda: {group["records"] for group in hub.json("status")["lag"].values()} == {0}, 60, "the hub did not come to rest")
    create(hub, "ruled")
    images = [pydicom.dcmread(path) for path in download(hub, "ruled", 1, tmp_path / "download").images]
    (study,) = signatures(pydicom.dcmread(path) for path in good[:3])
    found = signatures(images)
    assert found[study] == 1, "the three good ones, and nothing else of the study"
    assert sum(1 for image in images if image.PixelData == data_set.PixelData) == 0
