"""What the receiver is told from outside where it spools inside a trust."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from hub_ingest.settings import ReceiverSettings

_AE_TITLE = r"^[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?$"


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
    spool_calling_ae: Annotated[str, Field(pattern=_AE_TITLE)]
    """What the spool calls itself at the hub: an AE title of this trust there."""
    spool_called_ae: Annotated[str, Field(pattern=_AE_TITLE)] = "REGIONALHUB"
    spool_maximum_bytes: Annotated[int, Field(ge=1)] = 100 * 2**30
    """What waits and what was refused may take so much together; what does not fit is answered with 0xA700."""
    spool_retry_seconds: Annotated[float, Field(gt=0)] = 30
    """The longest pause before the hub is tried again."""

    @property
    def hub(self) -> tuple[str, int]:
        """Host and port of the hub."""
        host, _, port = self.spool_forward_to.rpartition(":")
        return host.strip("[]"), int(port)
