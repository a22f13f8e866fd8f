"""What export is told from outside."""

from pathlib import Path

from hub_runtime.settings import ServiceSettings
from pydantic import Field, SecretStr


class ExportSettings(ServiceSettings):
    """Of `hub-export`."""

    database_url: SecretStr
    """postgresql:// URL of the role `export`, which may read the view `research_index.export_instances`."""
    split_keys_file: Path | None = None
    """The key ring with the purpose `split`; or its text in `split_keys`."""
    split_keys: SecretStr | None = None
    export_threads: int = Field(default=8, ge=1, le=64)
    """Objects that are copied at the same time."""
