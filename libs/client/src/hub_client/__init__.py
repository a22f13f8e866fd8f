"""What a consumer of the hub's datasets needs: list them, show one, download it and go on where a download stopped."""

from hub_client.datasets import (
    BUCKETS,
    DatasetMissing,
    DatasetVersion,
    Downloaded,
    Part,
    PartSummary,
    Progress,
    WrongContent,
    download,
    list_datasets,
    manifest_paths,
    show,
)

__all__ = [
    "BUCKETS",
    "DatasetMissing",
    "DatasetVersion",
    "Downloaded",
    "Part",
    "PartSummary",
    "Progress",
    "WrongContent",
    "download",
    "list_datasets",
    "manifest_paths",
    "show",
]
