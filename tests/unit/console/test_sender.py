"""What is sent: which files are found, and how they are packed into associations."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from hub_console.sender import DicomFile, Outcome, Skipped, discover, look_at, meaning, pack, summary
from hub_dicom.synthetic import SyntheticPatient, synthetic_series


def test_a_folder_is_searched_and_what_is_no_dicom_file_is_named_with_the_reason(tmp_path: Path) -> None:
    instances = list(synthetic_series(SyntheticPatient("A", "1"), study="s", instances=2))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2").write_bytes(instances[1].content)
    (tmp_path / "1.dcm").write_bytes(instances[0].content)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "cut.dcm").write_bytes(instances[0].content[:136])
    (tmp_path / "empty").touch()
    found, skipped = discover([tmp_path, tmp_path / "1.dcm"])
    assert [file.path.name for file in found] == ["1.dcm", "2"]
    assert [file.sop_instance_uid for file in found] == [instance.sop_instance_uid for instance in instances]
    assert {skip.path.name: skip.reason for skip in skipped} == {
        "cut.dcm": "file meta lacks SOP class, SOP instance or transfer syntax",
        "empty": "not a DICOM file",
        "notes.txt": "not a DICOM file",
    }


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        discover([tmp_path / "nowhere"])


def test_what_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    assert look_at(tmp_path) == Skipped(tmp_path, "not readable: Is a directory")


def test_no_association_proposes_more_than_128_contexts_and_every_file_is_in_one() -> None:
    files = [file(number, sop_class=f"1.2.{number}") for number in range(300)]
    associations = pack(files)
    assert [len(batch) for batch in associations] == [128, 128, 44]
    assert flat(associations) == files


def test_many_files_of_few_contexts_go_over_one_association() -> None:
    assert [len(batch) for batch in pack([file(number) for number in range(1000)])] == [1000]


def test_work_for_many_jobs_is_shared_out_by_size() -> None:
    files = [file(number, size=100) for number in range(10)]
    associations = pack(files, jobs=4)
    assert [len(batch) for batch in associations] == [3, 3, 3, 1]
    assert flat(associations) == files
    assert pack([], jobs=4) == []


def test_files_of_one_folder_stay_together() -> None:
    files = [file(number, folder=folder) for number, folder in enumerate("abab")]
    assert [one.path.parent.name for one in flat(pack(files))] == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("status", "stored", "words"),
    [
        (0x0000, True, "stored"),
        (0xB007, True, "stored with a warning"),
        (0xA700, False, "out of resources: send it again later"),
        (0xA7FE, False, "out of resources: send it again later"),
        (0xC123, False, "cannot understand"),
        (0x0122, False, "SOP class not supported"),
        (0x0110, False, "failed"),
        (None, False, ""),
    ],
)
def test_a_status_is_a_success_a_warning_or_a_failure(status: int | None, stored: bool, words: str) -> None:
    assert Outcome(Path("x"), 1, status, "").stored is stored
    if status is not None:
        assert meaning(status) == words


def test_the_summary_counts_each_answer() -> None:
    outcomes = [Outcome(Path(str(number)), 1, 0, "stored" if number else "failed") for number in range(3)]
    assert summary(outcomes) == [("stored", 2), ("failed", 1)]


def file(number: int, *, sop_class: str = "1.2", folder: str = "f", size: int = 1) -> DicomFile:
    return DicomFile(Path(folder) / str(number), sop_class, f"1.3.{number}", "1.2.840.10008.1.2.1", size)


def flat(batches: Iterable[list[DicomFile]]) -> list[DicomFile]:
    return [one for batch in batches for one in batch]
