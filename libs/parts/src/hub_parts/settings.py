"""What can be set about the parts, all by HUB_ variables."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class PartsSettings(BaseSettings):
    """Read from the environment when made; see README.md for what each means."""

    model_config = SettingsConfigDict(env_prefix="HUB_", frozen=True, extra="ignore")

    cache_folder: Path | None = None
    """Where jars and MinIO's binary are kept; `cache` in the data folder when None."""
    parts_s3: Literal["seaweedfs", "minio"] | None = None
    """Which store to start: SeaweedFS, or MinIO when `durability` is `power`."""
    durability: Literal["process", "power"] = "process"
    """`process`: what was acknowledged survives SIGKILL of anything; `power`: a power cut too."""

    parts_routers: str | None = None
    """Trusts, joined by commas, whose own routers get an identity."""

    kafka_port: int | None = Field(None, ge=1, le=65535)
    s3_port: int | None = Field(None, ge=1, le=65535)
    postgres_port: int | None = Field(None, ge=1, le=65535)
    kafka_heap_megabytes: int = Field(512, ge=128)

    kafka_bootstrap_servers: str | None = None
    """An existing Kafka to use; none is started then."""
    kafka_username: str | None = None
    kafka_password: SecretStr | None = None
    s3_endpoint: str | None = None
    """An existing store to use, as a URL; none is started then."""
    s3_access_key: str | None = None
    s3_secret_key: SecretStr | None = None
    database_url: str | None = None
    """An existing PostgreSQL to use; none is started then."""

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("parts_routers")
    @classmethod
    def _trusts(cls, value: str | None) -> str | None:
        for name in filter(None, (value or "").split(",")):
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
                raise ValueError(f"{name!r} is no trust's name: HUB_PARTS_ROUTERS is names joined by commas")
        return value

    @property
    def routers(self) -> tuple[str, ...]:
        """The trusts of `parts_routers`."""
        return tuple(filter(None, (self.parts_routers or "").split(",")))

    @field_validator("durability", mode="before")
    @classmethod
    def _unset_durability(cls, value: object) -> object:
        return "process" if value in {"", None} else value

    @model_validator(mode="after")
    def _store_keeps_the_promise(self) -> Self:
        if self.durability == "power" and self.parts_s3 == "seaweedfs":
            raise ValueError(
                "HUB_DURABILITY=power needs MinIO: SeaweedFS loses acknowledged objects in a power cut. Leave HUB_PARTS_S3 unset or say minio."
            )
        return self

    @property
    def store(self) -> Literal["seaweedfs", "minio"]:
        """The store to start."""
        return self.parts_s3 or ("minio" if self.durability == "power" else "seaweedfs")
