"""Real parts for tests: `start_parts("kafka", "s3")` as a context manager, and what the fixtures of tests/integration hand out."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hub_parts import Parts, PartsSettings

if TYPE_CHECKING:
    from hub_objectstore import S3ObjectStore

ROOT = Path(__file__).resolve().parents[2]


def settings(**own: object) -> PartsSettings:
    """The environment's settings, with a cache that all tests share."""
    cache = os.environ.get("HUB_CACHE_FOLDER") or ROOT / ".hub" / "cache"
    return PartsSettings.model_validate({**PartsSettings().model_dump(), "cache_folder": cache, **own})


@contextlib.contextmanager
def data_folder() -> Iterator[Path]:
    """A folder for one run of parts, deleted afterwards, so that nothing can stay behind unseen."""
    folder = Path(tempfile.mkdtemp(prefix="hub-parts-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def start_parts(*only: str, secured_kafka: bool = False, **own: object) -> Iterator[Parts]:
    """Start those of `kafka`, `s3`, `database` that are named (all when none is), healthy, in a folder of their own.

    Which store it is decides HUB_PARTS_S3. The broker asks for no password unless `secured_kafka`; the hub's own always does.
    Settings of HUB_ variables can be given by name: `start_parts("s3", parts_s3="minio")`.
    """
    with (
        data_folder() as folder,
        Parts.start(folder, settings(**own), only=only or ("kafka", "s3", "database"), open_kafka=not secured_kafka) as parts,
    ):
        yield parts


@dataclass(frozen=True)
class S3:
    """The store's address and an identity that may do everything."""

    endpoint: str
    access_key: str
    secret_key: str

    def store(self) -> "S3ObjectStore":
        """An adapter of hub_objectstore that is connected to it."""
        from hub_objectstore import S3ObjectStore  # noqa: PLC0415 - tests of the parts alone need no adapter

        return S3ObjectStore(self.endpoint, self.access_key, self.secret_key)


def s3_of(parts: Parts, identity: str = "admin") -> S3:
    """The store as this identity sees it."""
    return S3(parts.s3_endpoint, **parts.credentials["s3"][identity])
