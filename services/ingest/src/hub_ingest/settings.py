"""What the receiver is told from outside."""

from pathlib import Path
from typing import Annotated, Self

from hub_dicom import Trusts, UnusableTrusts
from hub_runtime.errors import StopProcess
from hub_runtime.service import EXIT_SETTINGS
from hub_runtime.settings import ServiceSettings
from pydantic import Field, model_validator

AeTitle = Annotated[str, Field(pattern=r"^[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?$")]
"""PS3.5 6.2, VR AE: 1 to 16 printable characters without backslash, no space at either end."""


def load_trusts(file: Path) -> Trusts:
    """Who may send.

    Raises:
        StopProcess: the file cannot be used.
    """
    try:
        return Trusts.load(file)
    except UnusableTrusts as error:
        raise StopProcess(f"the trusts cannot be used: {error}", exit_code=EXIT_SETTINGS) from error


class ReceiverSettings(ServiceSettings):
    """Environment variables HUB_*, beside those of every service."""

    receiver_host: str = "127.0.0.1"
    """Where it listens; `0.0.0.0` only behind a network policy."""
    receiver_port: Annotated[int, Field(ge=0, le=65535)] = 11112
    """0: any free port, which the log names; not with several workers."""
    receiver_ae_title: AeTitle = "REGIONALHUB"
    """What senders must call it."""
    receiver_tls_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """A second port, for DICOM over TLS; 0: any free port, which the log names. Not set: no TLS."""
    receiver_tls_certificate_file: Path | None = None
    """PEM: this receiver's certificate and the chain above it. Read anew when it changes, as are the next two."""
    receiver_tls_key_file: Path | None = None
    """PEM: its key, without a password."""
    receiver_tls_ca_file: Path | None = None
    """PEM: the CAs that issue the trusts' certificates; the system's are not trusted."""
    commitment_wait_seconds: Annotated[float, Field(ge=0)] = 60
    """Storage commitment: what has not come so long after the request is missing (0112)."""
    commitment_references: Annotated[int, Field(ge=1)] = 10_000
    """Instances of one storage commitment request that are looked up; those beyond fail with 0213."""
    receiver_associations: Annotated[int, Field(ge=1, le=500)] = 200
    """At once, per worker; the next one is asked to come again (A-ASSOCIATE-RJ 2/3/2)."""
    receiver_associations_per_trust: Annotated[int, Field(ge=1, le=500)] = 50
    """Of one trust, per worker; so that no trust takes every place."""
    receiver_idle_seconds: Annotated[float, Field(gt=0)] = 60
    """After so long without a message an association is aborted."""
    receiver_memory_bytes: Annotated[int, Field(ge=0)] = 8 * 2**20
    """An instance up to this size waits in memory, a larger one in a file that nobody else sees."""
    receiver_all_memory_bytes: Annotated[int, Field(ge=0)] = 64 * 2**20
    """All instances that wait in memory together; without room in it a file comes earlier."""
    receiver_free_bytes: Annotated[int, Field(ge=0)] = 256 * 2**20
    """So much of the data folder's file system stays free: where it has less, instances are refused (0xA700)."""
    receiver_maximum_bytes: Annotated[int, Field(ge=1, le=5 * 2**30)] = 4 * 2**30
    """A larger instance is refused; at most 5 GiB, so that a store can copy it in one request."""

    @model_validator(mode="after")
    def _tls_whole(self) -> Self:
        files = (self.receiver_tls_certificate_file, self.receiver_tls_key_file, self.receiver_tls_ca_file)
        if self.receiver_tls_port is not None and None in files:
            raise ValueError(
                "HUB_RECEIVER_TLS_PORT needs HUB_RECEIVER_TLS_CERTIFICATE_FILE, HUB_RECEIVER_TLS_KEY_FILE and HUB_RECEIVER_TLS_CA_FILE"
            )
        return self
