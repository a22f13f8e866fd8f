"""Real Kafka, S3 and PostgreSQL on one machine: start, health, stop."""

from hub_parts.errors import AlreadyRunning, JarRefused, ProgramUnknown, StartAborted
from hub_parts.parts import Parts
from hub_parts.settings import PartsSettings
from hub_parts.supervisor import PART, SERVICE, Program, Supervisor

__all__ = [
    "PART",
    "SERVICE",
    "AlreadyRunning",
    "JarRefused",
    "Parts",
    "PartsSettings",
    "Program",
    "ProgramUnknown",
    "StartAborted",
    "Supervisor",
]
