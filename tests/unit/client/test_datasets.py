"""Downloading from a store in memory: what is resumed, checked and refused."""

import hashlib
import json
from pathlib import Path
from typing import Never

import pytest
from hub_client import DatasetMissing, Progress, WrongContent, datasets
from hub_objectstore import MemoryObjectStore, ObjectMissing, StoreRefused, StoreUnavailable


def put_dataset(store: MemoryObjectStore, name: str, version: int, files: dict[str, bytes], *, visible: bool = True) -> None:
    """A dataset as export leaves it, `files` in training, validation empty."""
    summaries = {}
    for part, content in (("training", files), ("validation", {})):
        bucket, prefix = f"datasets-{part}", f"{name}/{version}/"
        for path, body in content.items():
            store.put(bucket, prefix + path, body)
        manifest = "".join(f"{hashlib.sha256(body).hexdigest()}  {path}\n" for path, body in sorted(content.items())).encode()
        store.put(bucket, f"{prefix}manifest-sha256.txt", manifest)
        store.put(bucket, f"_catalogue/{name}/{version}", b"")
        reference = {
            "bucket": bucket,
            "key": f"{prefix}manifest-sha256.txt",
            "sha256": hashlib.sha256(manifest).hexdigest(),
            "size": len(manifest),
        }
        size = sum(map(len, content.values()))
        summaries[part] = {"subjects": 1, "studies": 1, "instances": len(content), "bytes": size, "manifest": reference}
    description = {
        "dataset": name,
        "version": version,
        "request": "r",
        "where": [],
        "training_percent": 80,
        "created": "2026-01-02T00:00:00+00:00",
    }
    for bucket in ("datasets-training", "datasets-validation") if visible else ():
        store.put(bucket, f"{name}/{version}/dataset.json", json.dumps(description | summaries).encode())


FILES = {f"training/ct/S/1/1/1.{number}.dcm": f"image {number}".encode() * number for number in range(1, 30)}


class OnlyTraining(MemoryObjectStore):
    """As a training consumer's credentials see it."""

    def get(self, bucket: str, key: str) -> bytes:
        if bucket != "datasets-training":
            raise StoreRefused("refused")
        return super().get(bucket, key)

    def list(self, bucket, prefix):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - as its parent's
        if bucket != "datasets-training":
            raise StoreRefused("refused")
        return super().list(bucket, prefix)


def test_visible_versions_are_listed_by_name_and_number() -> None:
    store = MemoryObjectStore()
    for name, version in (("b", 2), ("b", 10), ("a", 1)):
        put_dataset(store, name, version, FILES)
    put_dataset(store, "a", 2, FILES, visible=False)
    assert [(one.dataset, one.version) for one in datasets.list_datasets(store)] == [("a", 1), ("b", 2), ("b", 10)]
    with pytest.raises(DatasetMissing, match="no version 2"):
        datasets.show(store, "a", 2)


def test_a_consumer_of_training_sees_training_alone(tmp_path: Path) -> None:
    store = OnlyTraining()
    put_dataset(store, "a", 1, FILES)
    assert len(datasets.list_datasets(store)) == 1
    assert datasets.download(store, "a", 1, "training", tmp_path).files == len(FILES)
    with pytest.raises(DatasetMissing, match="validation"):
        datasets.download(store, "a", 1, "validation", tmp_path)


def test_credentials_that_open_nothing_say_so() -> None:
    class Closed(MemoryObjectStore):
        def list(self, bucket: str, prefix: str) -> Never:
            raise StoreRefused("refused")

    with pytest.raises(StoreRefused):
        datasets.list_datasets(Closed())


def test_everything_is_downloaded_and_counted(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    put_dataset(store, "a", 1, FILES)
    seen: list[Progress] = []
    done = datasets.download(store, "a", 1, "training", tmp_path, progress=seen.append)
    total = sum(map(len, FILES.values()))
    assert (done.files, done.fetched, done.bytes) == (len(FILES), len(FILES), total)
    assert {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*.dcm")} == FILES
    assert [progress.files for progress in seen] == [*range(1, len(FILES) + 1), len(FILES)]
    assert seen[-1] == Progress(len(FILES), len(FILES), total, total)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("there", [b"image 7", b"image 7" * 7, b"image 7" * 9, b"another", b"x" * 49])
def test_a_partial_file_is_gone_on_with_or_begun_anew(tmp_path: Path, there: bytes) -> None:
    store = MemoryObjectStore()
    put_dataset(store, "a", 1, FILES)
    partial = tmp_path / "training/ct/S/1/1/1.7.dcm.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(there)
    datasets.download(store, "a", 1, "training", tmp_path)
    assert (partial.parent / "1.7.dcm").read_bytes() == b"image 7" * 7
    assert not partial.exists()


def test_a_store_that_goes_away_leaves_what_is_whole(tmp_path: Path) -> None:
    class Failing(MemoryObjectStore):
        left = 10

        def get_range(self, bucket: str, key: str, offset: int, length: int) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise StoreUnavailable("away")
            return super().get_range(bucket, key, offset, length)

    store = Failing()
    put_dataset(store, "a", 1, FILES)
    with pytest.raises(StoreUnavailable):
        datasets.download(store, "a", 1, "training", tmp_path, threads=2)
    assert not (tmp_path / "dataset.json").exists()
    store.left = 10**6
    done = datasets.download(store, "a", 1, "training", tmp_path)
    assert (done.files, done.fetched) == (len(FILES), len(FILES) - 10)


def test_an_object_that_changed_is_reported(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    put_dataset(store, "a", 1, FILES)
    store.put("datasets-training", "a/1/training/ct/S/1/1/1.3.dcm", b"image !" * 3)
    with pytest.raises(WrongContent, match=r"1\.3\.dcm"):
        datasets.download(store, "a", 1, "training", tmp_path)
    assert not (tmp_path / "training/ct/S/1/1/1.3.dcm").exists()


def test_an_object_that_is_gone_is_reported(tmp_path: Path) -> None:
    store = MemoryObjectStore()
    put_dataset(store, "a", 1, FILES)
    store.delete("datasets-training", "a/1/training/ct/S/1/1/1.3.dcm")
    with pytest.raises((WrongContent, ObjectMissing)):
        datasets.download(store, "a", 1, "training", tmp_path)


def test_another_manifest_is_reported() -> None:
    store = MemoryObjectStore()
    put_dataset(store, "a", 1, FILES)
    store.put("datasets-training", "a/1/manifest-sha256.txt", b"")
    with pytest.raises(WrongContent, match="is not the one that dataset"):
        datasets.manifest_paths(store, datasets.show(store, "a", 1), "training")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../outside", "..\\outside", "a/\\..\\x"])
def test_a_path_out_of_the_folder_is_not_followed(tmp_path: Path, path: str) -> None:
    store = MemoryObjectStore()
    put_dataset(store, "a", 1, {path: b"x"})
    with pytest.raises(WrongContent):
        datasets.download(store, "a", 1, "training", tmp_path / "folder")
    assert list(tmp_path.rglob("outside")) == []
