"""Files to send: real ones that come with packages, and synthetic ones that say so."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from hub_dicom import FileMeta, Header, NotPart10, UnreadableDataSet, read_file_meta, read_header
from hub_dicom.synthetic import SyntheticInstance, SyntheticPatient, nhs_test_number, synthetic_series

__all__ = ["RealFile", "SyntheticInstance", "SyntheticPatient", "nhs_test_number", "real_files", "synthetic_series", "write_series"]


@dataclass(frozen=True, slots=True)
class RealFile:
    """A Part 10 file with a usable identity, from pydicom or pydicom-data."""

    path: Path
    meta: FileMeta
    header: Header

    def data_set(self) -> bytes:
        return self.path.read_bytes()[self.meta.data_set_offset :]


@cache
def real_files() -> tuple[RealFile, ...]:
    """Every bundled test file that a sender could send: Part 10, whole, all four UIDs, and meta that says what the data set says."""
    return tuple(_usable(sorted({path.name: path for path in _candidates()}.values(), key=lambda path: path.name)))


def _candidates() -> Iterator[Path]:
    # pydicom's own look-up would download what is not here; `data_store` is what the package pydicom-data installs.
    for package, folder in (("pydicom", "data"), ("data_store", "data")):
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(f"the package that installs {package} is missing: make setup")
        for path in Path(spec.submodule_search_locations[0], folder).rglob("*"):
            if path.is_file() and path.suffix != ".py":
                yield path


def _usable(paths: list[Path]) -> Iterator[RealFile]:
    for path in paths:
        content = path.read_bytes()
        try:
            meta = read_file_meta(content)
            header = read_header(content[meta.data_set_offset :], meta.transfer_syntax_uid)
        except (NotPart10, UnreadableDataSet):
            continue
        same = (header.sop_class_uid, header.sop_instance_uid) == (meta.sop_class_uid, meta.sop_instance_uid)
        if same and header.study_instance_uid is not None and header.series_instance_uid is not None:
            yield RealFile(path, meta, header)


def write_series(folder: Path, instances: Iterator[SyntheticInstance]) -> list[Path]:
    """Write instances as files, named by their number in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, instance in enumerate(instances):
        path = folder / f"{number:05d}.dcm"
        path.write_bytes(instance.content)
        paths.append(path)
    return paths
