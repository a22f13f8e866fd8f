"""What storage commitment is told from outside."""

from typing import Annotated

from hub_runtime import ServiceSettings
from pydantic import Field


class CommitmentSettings(ServiceSettings):
    """Environment variables HUB_*, beside those of every service."""

    receiver_ae_title: Annotated[str, Field(pattern=r"^[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?$")] = "REGIONALHUB"
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
