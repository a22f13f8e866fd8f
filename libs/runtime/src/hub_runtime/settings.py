"""What every process is told from outside: environment variables with the prefix HUB_, read once, frozen."""

import re
import time
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError
from hub_objectstore import S3ObjectStore
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hub_runtime.logs import logger

log = logger()


class ProcessSettings(BaseSettings):
    """What a process of the hub needs even without Kafka and store."""

    model_config = SettingsConfigDict(env_prefix="HUB_", frozen=True, extra="ignore")

    health_host: str = "127.0.0.1"
    """Where /livez, /readyz and /metrics are served; `0.0.0.0` only behind a network policy."""
    health_port: int = Field(default=0, ge=0, le=65535)
    """0: any free port; the log names it. Worker i serves at port + i."""
    workers: int = Field(default=1, ge=1)
    replica: str = Field(default="0", pattern=r"^[A-Za-z0-9._-]{1,80}$")
    """Stable for this replica over restarts and unique in its group: the transactional id stands on it."""
    drain_seconds: float = Field(default=10.0, gt=0)
    """How long running handlers may take to finish at SIGTERM, or when a partition goes to another member."""
    data_folder: Path = Path(".hub")
    log_strict: bool = False
    """A log field outside the allow-list raises (tests) instead of being dropped and counted (production)."""


class ServiceSettings(ProcessSettings):
    """What a service on Kafka and the object store needs; a service's own settings extend it."""

    kafka_bootstrap_servers: str
    kafka_username: str | None = None
    kafka_password: SecretStr | None = None
    kafka_security_protocol: str | None = None
    """Default: SASL_PLAINTEXT with a user name, PLAINTEXT without."""
    kafka_session_timeout_ms: int = Field(default=6000, ge=6000)
    kafka_max_poll_interval_ms: int = Field(default=300_000, ge=6000)
    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: SecretStr
    trusts_file: Path = Path("trusts.yaml")
    seal_key: SecretStr | None = None
    """What the hub's own events bear a seal with in topics that others may write (hub_events.seal); the same for all services of ingest."""

    @field_validator("seal_key")
    @classmethod
    def _thirty_two_bytes(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not re.fullmatch("[0-9a-f]{64}", key.get_secret_value()):
            raise ValueError("the key of the seal must be 64 lower-case hexadecimal digits")
        return key


class _Errors:
    """What a Kafka client says of its connections: each kind once in ten seconds."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __call__(self, error: KafkaError) -> None:
        now = time.monotonic()
        if now - self._last.get(error.name(), -60.0) > 10:
            self._last[error.name()] = now
            log.warning("a Kafka client reports an error and goes on", error=error.name())


def kafka_config(settings: ServiceSettings) -> dict[str, Any]:
    """The librdkafka settings that every client of the hub shares.

    `partitioner=murmur2_random` gives a key the partition that faust and Java give it. `retry.backoff.ms=1`: a transaction
    meets CONCURRENT_TRANSACTIONS from the one before it and would wait 100 ms by default.
    """
    config: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "partitioner": "murmur2_random",
        "retry.backoff.ms": 1,
        "retry.backoff.max.ms": 10,
        "reconnect.backoff.max.ms": 1000,
        "socket.keepalive.enable": True,
        # What librdkafka would print goes through the log instead, as a code.
        "log_level": 2,
        "error_cb": _Errors(),
    }
    if settings.kafka_username is not None:
        if settings.kafka_password is None:
            raise ValueError("HUB_KAFKA_USERNAME is set but HUB_KAFKA_PASSWORD is not: set both or neither")
        config |= {
            "security.protocol": settings.kafka_security_protocol or "SASL_PLAINTEXT",
            "sasl.mechanisms": "PLAIN",
            "sasl.username": settings.kafka_username,
            "sasl.password": settings.kafka_password.get_secret_value(),
        }
    elif settings.kafka_security_protocol is not None:
        config["security.protocol"] = settings.kafka_security_protocol
    return config


def seal_key(settings: ServiceSettings) -> bytes | None:
    """The key of the hub's seal; None where nobody but the hub writes its topics."""
    return None if settings.seal_key is None else bytes.fromhex(settings.seal_key.get_secret_value())


def open_store(settings: ServiceSettings) -> S3ObjectStore:
    """The object store with this service's credentials; opening it connects to nothing yet."""
    return S3ObjectStore(settings.s3_endpoint, settings.s3_access_key, settings.s3_secret_key.get_secret_value())
