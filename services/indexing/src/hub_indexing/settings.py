"""What the index's two processes are told from outside."""

from pathlib import Path

from hub_runtime.settings import ProcessSettings, ServiceSettings
from pydantic import Field, SecretStr


class IndexingSettings(ServiceSettings):
    """Of `hub-indexing`, which writes the index."""

    database_url: SecretStr
    """postgresql:// URL of the role that owns the schema `research_index`."""


class ApiSettings(ProcessSettings):
    """Of `hub-indexing-api`, which answers queries."""

    database_url: SecretStr
    """postgresql:// URL of the role that owns the schema `research_index`; its sessions are read-only."""
    qido_host: str = "127.0.0.1"
    qido_port: int = Field(default=8042, ge=0, le=65535)
    """0: any free port; the log names it."""
    qido_tokens_file: Path | None = None
    """JSON, `{"<who>": "<SHA-256 of the bearer token, 64 hexadecimal digits>"}`. Without it every query is refused."""
    qido_most_results: int = Field(default=5000, ge=1)
    """A response holds no more results; a warning says that there are more."""
