"""The page that the demo writes: one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from hub_console.compare import Mark, Row
from hub_console.ledger import STAGE_TITLES, STAGES, Count, Stage
from hub_console.tables import size


@dataclass(frozen=True, slots=True)
class Comparison:
    """One instance before and after."""

    title: str
    trust: str
    before: str
    """Data URI of the picture; empty when there is none."""
    after: str
    before_name: str
    after_name: str
    rows: Sequence[Row]
    counts: Mapping[Mark, int]
    same_pixels: bool
    preamble: str
    written: frozenset[str]
    """Keywords that the demo itself wrote into the file."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One study in the list of what was sent."""

    trust: str
    title: str
    origin: str
    modality: str
    instances: int
    outcome: Literal["released", "held back", "failed", "waiting"]
    text: str
    """The subject and part, or the reasons."""
    picture: str


@dataclass(frozen=True, slots=True)
class SamePerson:
    """One person whom two trusts know by different numbers."""

    subject: str
    seen: Sequence[tuple[str, str, str]]
    """Trust, study, and how the trust writes the person's numbers."""


@dataclass(frozen=True, slots=True)
class DatasetPartShown:
    """One part of the dataset."""

    name: str
    place: str
    subjects: int
    studies: int
    instances: int
    size: int
    folder: str
    """Where the demo downloaded it to."""


@dataclass(frozen=True, slots=True)
class Page:
    """All that the page says."""

    written: datetime
    seconds: float
    comparisons: Sequence[Comparison]
    """The first is shown in full, the others when asked for."""
    studies: Sequence[Shown]
    stages: Mapping[str, Mapping[Stage, Count]]
    quarantine: Sequence[tuple[str, str, str, int, int]]
    """Trust, stage, reason, studies, instances."""
    same_person: SamePerson | None
    dataset: str
    dataset_version: int
    dataset_parts: Sequence[DatasetPartShown]
    manifest_sha256: str
    places: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]]


def render(page: Page) -> str:
    """The page as HTML. Every value is escaped: file contents are other people's text."""
    environment = Environment(
        loader=PackageLoader("hub_console"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = size
    return environment.get_template("demo.html.j2").render(page=page, stages=STAGES, stage_titles=STAGE_TITLES)
