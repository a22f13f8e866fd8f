"""What storage commitment is told from outside."""

from pathlib import Path
from typing import Annotated, Self

from hub_runtime import ServiceSettings
from pydantic import Field, model_validator

from hub_ingest.receiver_tls import TlsFiles
from hub_ingest.settings import AeTitle


class CommitmentSettings(ServiceSettings):
    """Environment variables HUB_*, beside those of every service."""

    receiver_ae_title: AeTitle = "REGIONALHUB"
    """What it calls itself: the same as the receiver, whom the sender asked."""
    commitment_wait_seconds: Annotated[float, Field(ge=0)] = 60
    """What has not come so long after the request is missing (0112)."""
    commitment_references: Annotated[int, Field(ge=1)] = 10_000
    """Instances of one storage commitment request that are looked up; those beyond fail with 0213."""
    commitment_retry_seconds: Annotated[float, Field(gt=0)] = 5
    """Pause after the first report that was not acknowledged; it doubles up to an hour."""
    commitment_give_up_seconds: Annotated[float, Field(gt=0)] = 7 * 86_400
    """A report that nobody took for so long is given up."""
    commitment_concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    """Reports at the same time: a trust that does not answer keeps one of them busy for up to a minute."""
    commitment_remember_seconds: Annotated[float, Field(gt=0)] = 90 * 86_400
    """So long a Transaction UID that was reported, or given up, is known and not taken again."""
    receiver_tls_certificate_file: Path | None = None
    """PEM: what it shows to trusts that are called over TLS; the receiver's. Read anew for each report, as are the next two."""
    receiver_tls_key_file: Path | None = None
    """PEM: its key, without a password."""
    receiver_tls_ca_file: Path | None = None
    """PEM: the CAs that issue the trusts' certificates."""

    @model_validator(mode="after")
    def _tls_whole(self) -> Self:
        _ = self.tls  # raises where only some are named
        return self

    @property
    def tls(self) -> TlsFiles | None:
        """What trusts are called with over TLS, None: nothing."""
        return TlsFiles.of(self.receiver_tls_certificate_file, self.receiver_tls_key_file, self.receiver_tls_ca_file)
