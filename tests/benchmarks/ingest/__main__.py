"""`make bench-ingest`: the hub's receiver against storescp, Orthanc and plain pynetdicom, in one run, interleaved, medians."""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hub_parts import Parts
from hub_runtime import create_topics
from support.parts import ROOT, settings

from benchmarks.ingest.systems import (
    Measured,
    NotThere,
    System,
    hub_disk,
    hub_durable,
    orthanc,
    plain_pynetdicom,
    put_and_produce,
    storescp,
)
from benchmarks.ingest.work import Work, works

RESULT: Final = ROOT / ".hub" / "bench" / "ingest.json"
_WARM_INSTANCES: Final = 4
_run: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Row:
    """What one system did with one work: medians over the rounds; ratios are medians of each round's own ratio."""

    work: str
    system: str
    instances_per_second: float
    megabytes_per_second: float
    ratio_to_storescp: float
    ratio_to_orthanc: float
    cpu_ms_per_instance: float
    peak_rss_mb: float


@dataclass(frozen=True, slots=True)
class Bar:
    """What is asked of the hub."""

    work: str
    system: str
    against: str
    least: float
    ratio: float

    @property
    def holds(self) -> bool:
        """Whether it is met."""
        return self.ratio >= self.least


Rounds = dict[str, list[Measured]]
"""By system, in the order of the rounds."""


def main() -> None:
    """Measure, print, write; exit code 1 when a bar is not met (never with --quick), 2 when a program is missing."""
    parser = argparse.ArgumentParser(prog="make bench-ingest", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few instances, once: does it run? The figures mean nothing")
    parser.add_argument("--rounds", type=int, default=None, help="how often each system does each work (3)")
    parser.add_argument("--instances", type=int, default=None, help="how many CT (500)")
    parser.add_argument("--multi-frame", type=int, default=None, help="how many multi-frame images (20)")
    parser.add_argument("--only", default="", help="only works whose name contains this")
    parser.add_argument("--systems", default="", help="only systems whose names start with one of these, separated by commas")
    parser.add_argument("--peer-pdu", type=int, default=None, help="maximum PDU length of storescp and Orthanc (their own default: 16384)")
    parser.add_argument("--result", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    quick = bool(arguments.quick)
    rounds = arguments.rounds or (1 if quick else 3)
    chosen = works(arguments.instances or (8 if quick else 500), arguments.multi_frame or (2 if quick else 20))
    try:
        # Before anything is started: the others do not come with the project.
        storescp(), orthanc()
    except NotThere as missing:
        sys.stderr.write(f"{missing}\n")
        sys.exit(2)
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # A new store for each work is less on the disk at a time; a quick run has little.
        ready = stack.enter_context(_parts()) if quick else None
        rows, bars, servers = _measure_all(
            [work for work in chosen if arguments.only in work.name], rounds, arguments.systems, arguments.peer_pdu, ready
        )
    print(_table(rows, servers), _verdicts(bars), sep="\n\n")
    found = {
        "mode": "quick" if quick else "full",
        "rounds": rounds,
        "peer_pdu": arguments.peer_pdu,
        "cores": os.cpu_count(),
        "rows": [asdict(row) for row in rows],
        "bars": [asdict(bar) | {"holds": bar.holds} for bar in bars],
        "cpu_ms_per_instance_of_broker_and_store": servers,
    }
    arguments.result.write_text(json.dumps(found, indent=1) + "\n")
    if not quick and not all(bar.holds for bar in bars):
        sys.exit(1)


def _measure_all(
    chosen: list[Work], rounds: int, systems: str, peer_pdu: int | None, ready: Parts | None
) -> tuple[list[Row], list[Bar], dict[str, dict[str, float]]]:
    rows: list[Row] = []
    bars: list[Bar] = []
    servers: dict[str, dict[str, float]] = {}
    for work in chosen:
        with contextlib.nullcontext(ready) if ready is not None else _parts() as parts:
            measured = _measure(work, rounds, tuple(systems.split(",")), peer_pdu, parts)
        rows += _rows(work, measured)
        bars += _bars(work, measured)
        servers[work.name] = {
            name: round(statistics.median(one.parts_processor_seconds for one in runs) / work.instances * 1000, 2)
            for name, runs in measured.items()
            if any(one.parts_processor_seconds for one in runs)
        }
    return rows, bars, servers


def _systems(work: Work, peer_pdu: int | None, parts: Parts) -> list[System]:
    """Who does this work. With several senders the hub also runs the way it is meant to use more cores: `--workers`."""
    workers = [1] if work.senders == 1 else [1, 2]
    return [
        storescp(peer_pdu),
        orthanc(peer_pdu),
        plain_pynetdicom(),
        *(hub_disk(count, digest=digest) for count in workers for digest in (False, True)),
        *(hub_durable(count, parts) for count in workers),
        put_and_produce(parts),
    ]


def _measure(work: Work, rounds: int, only: tuple[str, ...], peer_pdu: int | None, parts: Parts) -> Rounds:
    found: Rounds = {}
    warm = work.with_instances(_WARM_INSTANCES)
    with _folder() as folder:
        for turn in range(rounds):
            systems = [system for system in _systems(work, peer_pdu, parts) if system.name.startswith(only)]
            # Nobody is always first, or always after the same other.
            for system in systems[turn % len(systems) :] + systems[: turn % len(systems)]:
                print(f"{work.name}, round {turn + 1} of {rounds}: {system.name} … ", end="", flush=True)
                place = Path(tempfile.mkdtemp(dir=folder))
                with system.start(place) as run:
                    if system.warm:
                        run(warm, next(_run))
                    measured = run(work, next(_run))
                _empty(place)
                found.setdefault(system.name, []).append(measured)
                print(f"{work.instances / measured.seconds:.0f}/s", flush=True)
                time.sleep(0.5)
    return found


def _empty(folder: Path) -> None:
    """Give the room of its files back, but leave the files: ext4 passes over inodes that were just freed, one by one, at each creation.

    Whoever came after a run with many files would pay for it.
    """
    for name, _, files in os.walk(folder):
        for file in files:
            os.truncate(Path(name) / file, 0)


def _rows(work: Work, measured: Rounds) -> list[Row]:
    rows = []
    for system, runs in measured.items():
        rate = work.instances / statistics.median(one.seconds for one in runs)
        rows.append(
            Row(
                work=work.name,
                system=system,
                instances_per_second=round(rate, 1),
                megabytes_per_second=round(rate * work.megabytes, 1),
                ratio_to_storescp=_ratio(measured, system, "storescp"),
                ratio_to_orthanc=_ratio(measured, system, "Orthanc"),
                cpu_ms_per_instance=round(statistics.median(one.processor_seconds for one in runs) / work.instances * 1000, 2),
                peak_rss_mb=round(statistics.median(one.peak_megabytes for one in runs), 1),
            )
        )
    return rows


def _bars(work: Work, measured: Rounds) -> list[Bar]:
    """What the receiver is held to, in ratios of one run."""
    workers = "" if work.senders == 1 else ", 2 workers"
    disk, safe = f"hub disk{workers}", f"hub durable{workers}"
    wanted = [(disk, "storescp", 1.5 if work.megabytes > 10 else 1.0), (safe, "PUT and produce", 0.8)]
    if work.megabytes < 10:
        wanted.append((safe, "Orthanc", 0.8 if work.senders == 1 else 1.0))
    return [
        Bar(work.name, system, against, least, _ratio(measured, system, against))
        for system, against, least in wanted
        if system in measured and against in measured
    ]


def _ratio(measured: Rounds, system: str, against: str) -> float:
    if against not in measured:
        return 0.0
    pairs = zip(measured[system], measured[against], strict=True)
    return round(statistics.median(theirs.seconds / ours.seconds for ours, theirs in pairs), 3)


def _table(rows: list[Row], servers: dict[str, dict[str, float]]) -> str:
    heads = ("work", "system", "instances/s", "MB/s", "x storescp", "x Orthanc", "CPU ms/instance", "peak RSS MB")
    lines = [tuple(str(value) for value in asdict(row).values()) for row in rows]
    widths = [max(len(line[column]) for line in (heads, *lines)) for column in range(len(heads))]

    def text(line: tuple[str, ...]) -> str:
        first = "  ".join(value.ljust(width) for value, width in zip(line[:2], widths[:2], strict=True))
        return "  ".join((first, *(value.rjust(width) for value, width in zip(line[2:], widths[2:], strict=True))))

    below = [
        f"{work}: broker and store took {milliseconds} ms of CPU an instance beside {system}"
        for work, found in servers.items()
        for system, milliseconds in found.items()
    ]
    return "\n".join(("", text(heads), *(text(line) for line in lines), "", *below))


def _verdicts(bars: list[Bar]) -> str:
    return "\n".join(
        f"{'pass' if bar.holds else 'FAIL'}  {bar.work}: {bar.system} is {bar.ratio:.2f} x {bar.against}, asked for {bar.least:.1f}"
        for bar in bars
    )


@contextmanager
def _parts() -> Iterator[Parts]:
    with _folder() as folder, Parts.start(folder / "parts", settings(), only=("kafka", "s3")) as parts:
        create_topics(parts.kafka_config("admin"))
        yield parts


@contextmanager
def _folder() -> Iterator[Path]:
    """On the project's own disk, not in a temporary folder that may be memory."""
    place = ROOT / ".hub" / "bench"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix="run-") as folder:
        yield Path(folder)


if __name__ == "__main__":
    main()
