"""What the receiver is told from outside where it spools inside a trust."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator

from hub_ingest.receiver_tls import TlsFiles
from hub_ingest.settings import AeTitle, ReceiverSettings


class SpoolSettings(ReceiverSettings):
    """Environment variables HUB_*, beside those of the receiver. Neither broker nor store is used."""

    kafka_bootstrap_servers: str = ""
    s3_endpoint: str = ""
    s3_access_key: str = ""
    s3_secret_key: SecretStr = SecretStr("")

    spool_folder: Path
    """Where instances wait; `--spool` sets it. On a disk of its own, best."""
    spool_forward_to: Annotated[str, Field(pattern=r"^(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$")]
    """The hub: `host:port`."""
    spool_calling_ae: AeTitle
    """What the spool calls itself at the hub: an AE title of this trust there."""
    spool_called_ae: AeTitle = "REGIONALHUB"
    spool_tls_certificate_file: Path | None = None
    """PEM: the certificate that the spool shows the hub. Set, the hub is called over TLS; read anew for each association, as are the next two."""
    spool_tls_key_file: Path | None = None
    """PEM: its key, without a password."""
    spool_tls_ca_file: Path | None = None
    """PEM: the CAs that issue the hub's certificate, which must be for the host of HUB_SPOOL_FORWARD_TO."""
    spool_maximum_bytes: Annotated[int, Field(ge=1)] = 100 * 2**30
    """What waits and what was refused may take so much together; what does not fit is answered with 0xA700."""
    spool_retry_seconds: Annotated[float, Field(gt=0)] = 30
    """The longest pause before the hub is tried again."""

    @model_validator(mode="after")
    def _forward_tls_whole(self) -> Self:
        _ = self.tls  # raises where only some are named
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """What the hub is called with, None: in the clear."""
        return TlsFiles.of(self.spool_tls_certificate_file, self.spool_tls_key_file, self.spool_tls_ca_file, "HUB_SPOOL_TLS")

    @property
    def hub(self) -> tuple[str, int]:
        """Host and port of the hub."""
        host, _, port = self.spool_forward_to.rpartition(":")
        return host.strip("[]"), int(port)
