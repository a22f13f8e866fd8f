"""What the assembler is told from outside."""

from hub_runtime.settings import ServiceSettings
from pydantic import Field


class AssemblerSettings(ServiceSettings):
    """Environment variables HUB_*, beside those of every service."""

    assembler_session_seconds: float = Field(default=30.0, ge=6, le=300)
    """After so long without a heartbeat the broker gives a replica's partitions to the others. One that comes back sooner keeps them."""
    assembler_tick_seconds: float = Field(default=1.0, gt=0)
    """How often the table is read for studies that look quiet: how late a quiet study may be noticed."""
    assembler_limit_seconds: float = Field(default=21_600, gt=0)
    """After so long a study that never gets quiet is closed as it is, where its trust has no `limit_seconds`."""
