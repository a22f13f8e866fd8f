"""What the service is told from outside: environment variables with the prefix HUB_."""

from pathlib import Path

from hub_runtime import ServiceSettings
from pydantic import Field, SecretStr


class DeidentificationSettings(ServiceSettings):
    """Settings of `hub-deidentification`, beside those of every service."""

    deidentification_keys_file: Path | None = None
    """The key ring: JSON, mode 0600. Or `deidentification_keys`, not both."""
    deidentification_keys: SecretStr | None = None
    """The key ring's JSON itself, as a secret store puts it into the environment."""
    deidentification_profile: str = "basic-modified-dates"
    deidentification_studies: int = Field(default=2, ge=1, le=64)
    """Studies at the same time, each in a child process of its own."""
    deidentification_threads: int = Field(default=4, ge=1, le=64)
    """Instances of one study at the same time."""
    deidentification_memory_mib: int = Field(default=512, ge=16)
    """How much of source objects a study's threads hold at the same time; a larger instance is handled alone."""
