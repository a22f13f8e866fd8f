"""The hub as the console's commands reach it: by the HUB_ variables, or by what `hub up` wrote into the data folder."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_objectstore import S3ObjectStore
from hub_runtime.settings import ServiceSettings, kafka_config, open_store
from pydantic import ValidationError

ENDPOINTS = "endpoints.json"
_REMOTE = ("HUB_KAFKA_BOOTSTRAP_SERVERS", "HUB_S3_ENDPOINT", "HUB_S3_ACCESS_KEY", "HUB_S3_SECRET_KEY")


class NotRunning(LookupError):
    """No hub runs over this data folder: start one with `hub up`."""


class RunFailed(RuntimeError):
    """What a command set out to do did not come to its end; the text says where it stopped and what to look at."""


class ConsoleSettings(ServiceSettings):
    """What the console's commands need of the hub's parts."""


@dataclass(frozen=True, slots=True)
class Running:
    """A hub that runs, as the console's own identity sees it."""

    settings: ConsoleSettings
    endpoints: dict[str, Any]
    """endpoints.json of `hub up`; empty when the HUB_ variables name the parts."""

    @property
    def kafka(self) -> dict[str, Any]:
        """Settings for a Kafka client."""
        return kafka_config(self.settings)

    def store(self) -> S3ObjectStore:
        """The object store: the console may read and list every bucket."""
        return open_store(self.settings)


def read_endpoints(data_folder: Path) -> dict[str, Any]:
    """endpoints.json of a hub that runs.

    Raises:
        NotRunning: there is none, or its `hub up` is gone.
    """
    path = data_folder / ENDPOINTS
    try:
        endpoints: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        pid = int(endpoints["supervisor"]["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        raise NotRunning(f"no hub runs over {data_folder}: start one with `make up` (or `hub up --data {data_folder}`)") from None
    if not Path(f"/proc/{pid}").exists():
        raise NotRunning(f"the hub over {data_folder} is gone (its process {pid} has ended): start it again with `make up`")
    return endpoints


def connect(data_folder: Path) -> Running:
    """The hub that the HUB_ variables name, or else the one that runs over `data_folder`.

    Raises:
        NotRunning: neither is there.
    """
    if all(os.environ.get(name) for name in _REMOTE):
        try:
            return Running(ConsoleSettings(), {})
        except ValidationError as error:
            names = ", ".join(f"HUB_{str(item['loc'][0]).upper()}" for item in error.errors())
            raise NotRunning(f"the hub's parts are named by HUB_ variables, but these are wrong: {names}") from None
    endpoints = read_endpoints(data_folder)
    credentials: dict[str, Any] = json.loads(Path(endpoints["credentials_file"]).read_text(encoding="utf-8"))
    kafka, s3 = credentials["kafka"].get("console") or {}, credentials["s3"]["console"]
    settings = ConsoleSettings(
        kafka_bootstrap_servers=endpoints["kafka"]["bootstrap_servers"],
        kafka_username=kafka.get("username"),
        kafka_password=kafka.get("password"),
        s3_endpoint=endpoints["s3"]["endpoint"],
        s3_access_key=s3["access_key"],
        s3_secret_key=s3["secret_key"],
        trusts_file=Path(endpoints["trusts_file"]),
        data_folder=data_folder,
    )
    return Running(settings, endpoints)
