"""What the closer is told from outside."""

from hub_runtime import ServiceSettings
from pydantic import Field


class CloserSettings(ServiceSettings):
    """Environment variables HUB_*, beside those of every service."""

    sweep_seconds: float = Field(default=600.0, ge=0)
    """Pause between two sweeps; the first one runs at the start. 0: this replica does not sweep; one that does is enough."""
    closer_concurrency: int = Field(default=4, ge=1)
    """Studies closed at the same time. Each needs memory for its listing and manifest: about 100 MB at 20,000 instances."""
