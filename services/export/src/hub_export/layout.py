"""How a dataset stands in its two buckets.

<name>/<version>/<side>/<folder>/SUBJECT/STUDY/SERIES/INSTANCE.dcm            the image
<name>/<version>/<side>/<folder>-metadata/SUBJECT/STUDY/SERIES/INSTANCE.json  its elements, DICOM JSON without pixel data
<name>/<version>/manifest-sha256.txt                                          the SHA-256 of each, sorted by path
<name>/<version>/dataset.json                                                 last of all: with it the version is there
_catalogue/<name>/<version>                                                   empty; where to look for a dataset.json
"""

from collections.abc import Iterable
from typing import Final

from hub_dicom.modality import modality_folder

from hub_export.cohort import Instance
from hub_export.split import Side

BUCKETS: Final[dict[Side, str]] = {"training": "datasets-training", "validation": "datasets-validation"}


def paths(side: Side, instance: Instance) -> tuple[str, str]:
    """Where image and metadata stand below `<name>/<version>/`."""
    folder = modality_folder(instance.modality)
    below = f"{instance.subject}/{instance.study_instance_uid}/{instance.series_instance_uid}/{instance.sop_instance_uid}"
    return f"{side}/{folder}/{below}.dcm", f"{side}/{folder}-metadata/{below}.json"


def manifest(digests: Iterable[tuple[str, str]]) -> bytes:
    """The manifest of (path, SHA-256) pairs, as `sha256sum` reads it; it says nothing of when, by whom or in which revision."""
    return "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(digests)).encode()


def catalogue_key(dataset: str, version: int) -> str:
    """The empty object by which a version is found without listing its images."""
    return f"_catalogue/{dataset}/{version}"
