"""A dataset version as a consumer has it after downloading."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from support.hub import Hub

PARTS = ("training", "validation")


@dataclass
class Exported:
    """The downloaded files of one version, by part."""

    folders: dict[str, Path]

    @property
    def images(self) -> list[Path]:
        return sorted(path for folder in self.folders.values() for path in folder.rglob("*.dcm"))

    @property
    def metadata(self) -> list[Path]:
        return sorted(path for folder in self.folders.values() for path in folder.rglob("*-metadata/**/*.json"))

    @property
    def digests(self) -> dict[str, dict[str, str]]:
        """SHA-256 of every payload file by part and path."""
        return {
            part: {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in payload(folder)}
            for part, folder in self.folders.items()
        }


def payload(folder: Path) -> list[Path]:
    return sorted(path for pattern in ("*.dcm", "*-metadata/**/*.json") for path in folder.rglob(pattern))


def create(hub: Hub, name: str, *arguments: str) -> None:
    """Ask for a dataset of everything and wait for it."""
    made = hub.command("export", "create", name, "--training-percent", "80", *arguments)
    assert made.returncode == 0, made.stdout + made.stderr


def download(hub: Hub, name: str, version: int, folder: Path) -> Exported:
    folders = {}
    for part in PARTS:
        folders[part] = folder / part
        result = hub.command("export", "download", name, folders[part], "--part", part, "--version", str(version))
        assert result.returncode == 0, result.stdout + result.stderr
    return Exported(folders)
