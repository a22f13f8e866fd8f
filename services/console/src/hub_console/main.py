"""The `hub` command."""

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn, cast

import typer
from hub_client import Part
from hub_client.datasets import DatasetMissing, DatasetVersion, WrongContent, download, list_datasets, show
from hub_client.datasets import Progress as DownloadProgress
from hub_dicom.trusts import UnusableTrusts
from hub_objectstore import StoreRefused, StoreUnavailable
from hub_parts import AlreadyRunning, PartsSettings, StartAborted
from hub_runtime.errors import BrokerUnavailable
from hub_runtime.keyring import BadKeyRing
from hub_runtime.topics import TopicMismatch
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn
from rich.table import Table

from hub_console import looks, tables
from hub_console.exports import GivenUp, NoAnswer, request
from hub_console.records import BrokerAway
from hub_console.running import NotRunning, RunFailed, Running, connect, read_endpoints
from hub_console.tables import size
from hub_console.up import AE_TITLE, Up

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Run, feed and look at a Regional Imaging Hub."
)
export_app = typer.Typer(no_args_is_help=True, help="Make, list, look at and download datasets.")
app.add_typer(export_app, name="export")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Data = Annotated[Path, typer.Option("--data", envvar="HUB_DATA_FOLDER", help="The data folder of the hub.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
_HUB = Path(".hub")
_NAMED = 10
_REFUSALS = (
    AlreadyRunning, StartAborted, NotRunning, BrokerAway, BrokerUnavailable, StoreUnavailable, StoreRefused, TopicMismatch, UnusableTrusts, BadKeyRing,
    NoAnswer, GivenUp, DatasetMissing, WrongContent, RunFailed,
)  # fmt: skip
"""What ends a command with its text and nothing else: each says what to do."""


def main() -> None:
    """Entry point: errors that a reader can act on are printed as text, without a traceback."""
    try:
        app()
    except _REFUSALS as error:
        fail(str(error))
    except KeyboardInterrupt:
        err.print("Stopped.")
        sys.exit(130)


def fail(text: str) -> NoReturn:
    """Print an error and end with exit code 1."""
    err.print(f"[bold red]{escape(text)}[/]", soft_wrap=True)
    sys.exit(1)


@app.command()
def up(
    data: Data = _HUB,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes of each service that consumes.")] = 1,
    s3: Annotated[str | None, typer.Option(help="The store to start: seaweedfs or minio. Default: HUB_PARTS_S3, or seaweedfs.")] = None,
    durability: Annotated[
        str | None,
        typer.Option(help="process: survives SIGKILL of anything; power: a power cut too (MinIO). Default: HUB_DURABILITY, or process."),
    ] = None,
) -> None:
    """Start Kafka, S3, PostgreSQL and every service; stay until Ctrl-C, then stop all of it."""
    settings = parts_settings(s3, durability)
    with signals() as stopping:
        try:
            hub = Up.start(data, settings, workers=workers, say=lambda text: out.print(escape(text)))
        except AlreadyRunning as error:
            with suppress(NotRunning):
                out.print(tables.endpoints_table(read_endpoints(data)))
            fail(str(error))
        try:
            out.print(tables.endpoints_table(hub.endpoints))
            out.print("[bold]The hub is up.[/] Ctrl-C stops it. In another terminal: `hub status`, `hub send PATH`, `hub demo`.")
            hub.watch(stopping.wait)
        finally:
            with undisturbed():
                out.print("Stopping ...")
                hub.stop()
        out.print("Stopped; nothing runs any more.")


@app.command()
def send(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, or folders to search for them.")],
    *,
    to: Annotated[str | None, typer.Option(help="HOST:PORT of the receiver. Default: the hub that runs over the data folder.")] = None,
    calling: Annotated[
        str | None, typer.Option(help="Our AE title, by which the hub knows the trust. Default: that of the hub's first trust.")
    ] = None,
    called: Annotated[str | None, typer.Option(help="The receiver's AE title.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Associations at a time.")] = 1,
    data: Data = _HUB,
) -> None:
    """Send DICOM files by C-STORE, as they are. Safe to run again: what the hub has is not stored twice."""
    # pynetdicom and pydicom take a second to load, which no other command needs.
    from hub_console.sender import Outcome, discover, summary  # noqa: PLC0415
    from hub_console.sender import send as send_files  # noqa: PLC0415

    host, port, called_title, calling_title = _receiver(to, calling, called, data)
    try:
        files, skipped = discover(paths)
    except FileNotFoundError as error:
        fail(str(error))
    for skip in skipped:
        err.print(f"[yellow]skipped[/] {escape(str(skip.path))}: {skip.reason}", soft_wrap=True)
    if not files:
        fail("nothing to send: no DICOM file was found")
    out.print(
        f"Sending {len(files)} files, {size(sum(file.size for file in files))}, from {calling_title} to {called_title} at {host}:{port}"
    )
    columns = (TextColumn("{task.fields[files]}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out) as bar:
        task = bar.add_task("", total=sum(file.size for file in files), files=f"0 of {len(files)} files")
        answered = count(1)

        def progress(outcome: Outcome) -> None:
            bar.update(task, advance=outcome.size, files=f"{next(answered)} of {len(files)} files")

        outcomes = send_files(files, host, port, calling=calling_title, called=called_title, jobs=jobs, progress=progress)
    failed = [outcome for outcome in outcomes if not outcome.stored]
    result = tables.table("Answer", "files", right=["files"])
    for text, number in summary(outcomes):
        result.add_row(text, str(number))
    out.print(result)
    for text, number in summary(failed):
        err.print(f"[red]{number} failed:[/] {escape(text)}", soft_wrap=True)
        names = [str(outcome.path) for outcome in failed if outcome.text == text]
        err.print("\n".join(f"  {escape(name)}" for name in names[:_NAMED]), soft_wrap=True)
        if number > _NAMED:
            err.print(f"  ... and {number - _NAMED} more")
    if failed:
        fail(
            f"{len(failed)} of {len(outcomes)} files were not stored. Run the same command again when the cause is mended: repeats are harmless."
        )
    out.print(f"[green]All {len(outcomes)} files are stored.[/]" + (f" {len(skipped)} were skipped." if skipped else ""))


@app.command()
def status(data: Data = _HUB, as_json: AsJson = False) -> None:
    """How every trust and stage stands: done, waiting, failed, consumer lag."""
    running = connect(data)
    found = looks.status(running)
    services = looks.services(running)
    if as_json:
        report = tables.status_json(found.ledger, found.lags) | {
            "unreadable": [
                {"topic": one.topic, "partition": one.partition, "offset": one.offset, "reason": one.reason} for one in found.unreadable
            ],
            "services": services,
        }
        print(json.dumps(report, indent=1))  # noqa: T201 # JSON goes out as it is, not through rich
        return
    out.print(
        tables.status_table(found.ledger)
        if found.ledger.studies
        else "No study has come yet: send some with `hub send PATH` or `hub demo`."
    )
    if found.ledger.quarantine():
        out.print(tables.quarantine_table(found.ledger))
    if found.ledger.dead_letters:
        out.print(tables.dead_letter_table(found.ledger))
    out.print(tables.lag_table(found.lags))
    datasets = found.ledger.datasets()
    if any(datasets.values()):
        out.print("Datasets: " + ", ".join(f"{number} {name}" for name, number in datasets.items() if number))
    away = [name for name, one in services.items() if not one["ready"]]
    if away:
        out.print(f"[red]Not ready: {', '.join(away)}[/] (logs in {running.endpoints['logs']})")


@app.command()
def trace(
    study: Annotated[str, typer.Argument(help="StudyInstanceUID, the trust's own or the research one.")],
    data: Data = _HUB,
    as_json: AsJson = False,
) -> None:
    """Every event of one study, in order, with times, across both zones."""
    lines = looks.trace(connect(data), study)
    if as_json:
        print(json.dumps([line.as_json() for line in lines], indent=1))  # noqa: T201 # as above
    elif lines:
        out.print(tables.trace_table(lines))
        out.print(f"{len(lines)} events, {(lines[-1].time - lines[0].time).total_seconds():.1f} s from the first to the last.")
    if not lines:
        fail(f"no event knows study {study}: it never came, or its events are older than the topics keep them")


@export_app.command("create")
def export_create(
    name: Annotated[str, typer.Argument(help="The dataset's name: lower-case letters, digits, hyphens.")],
    *,
    training_percent: Annotated[
        int, typer.Option(min=0, max=100, help="Share of subjects in the training part; the same for all datasets of a hub.")
    ],
    where: Annotated[list[str] | None, typer.Option(help="KEYWORD=VALUE, for example Modality=CT; repeat for more, all must hold.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is made or refused.")] = True,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds to wait.")] = 600,
    data: Data = _HUB,
) -> None:
    """Make the next version of a dataset from what the index holds."""
    running = connect(data)
    try:
        with out.status(f"Making dataset {name} ..."):
            asked, answer = request(running, name, where or [], training_percent, wait_seconds=timeout if wait else None)
    except ValidationError as error:
        fail("; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()))
    if answer is None:
        out.print(f"Asked for; request {asked.id}. `hub export list` shows the dataset when it is made.")
        return
    if answer.outcome == "refused":
        fail(f"Refused: {answer.reason}")
    out.print(f"[green]Dataset {name}, version {answer.version}, is made.[/]")
    out.print(_dataset_table(show(running.store(), name, answer.version or 1)))


@export_app.command("list")
def export_list(data: Data = _HUB, as_json: AsJson = False) -> None:
    """Every version of every dataset."""
    versions = list_datasets(connect(data).store())
    if as_json:
        print(json.dumps([version.model_dump(mode="json") for version in versions], indent=1))  # noqa: T201 # as above
        return
    if not versions:
        out.print("There is no dataset yet: make one with `hub export create NAME --training-percent 80`.")
        return
    made = tables.table("Dataset", "version", "made", "where", "training", "validation", "size", right=["version", "size"])
    for version in versions:
        parts = [f"{part.instances} of {part.subjects} subjects" for part in (version.training, version.validation)]
        made.add_row(
            version.dataset,
            str(version.version),
            version.created.strftime("%Y-%m-%d %H:%M"),
            " and ".join(version.where) or "everything",
            *parts,
            size(version.training.bytes + version.validation.bytes),
        )
    out.print(made)


@export_app.command("show")
def export_show(
    name: str,
    version: Annotated[int | None, typer.Argument(help="Default: the latest.")] = None,
    data: Data = _HUB,
    as_json: AsJson = False,
) -> None:
    """What is in one version of a dataset, and where."""
    store = connect(data).store()
    found = show(store, name, version or _latest(connect(data), name))
    if as_json:
        print(found.model_dump_json(indent=1))  # noqa: T201 # as above
        return
    out.print(f"[bold]{name}[/], version {found.version}, made {found.created:%Y-%m-%d %H:%M:%S} UTC, {found.training_percent} % training")
    out.print(f"where {' and '.join(found.where) or 'everything'}")
    out.print(_dataset_table(found))


@export_app.command("download")
def export_download(
    name: str,
    folder: Annotated[Path, typer.Argument(help="Where to; what is there and whole is not fetched again.")],
    part: Annotated[str, typer.Option(help="training or validation.")],
    version: Annotated[int | None, typer.Option(help="Default: the latest.")] = None,
    data: Data = _HUB,
) -> None:
    """Download one part of a dataset and check every file's SHA-256. Goes on where it stopped."""
    if part not in {"training", "validation"}:
        fail(f"--part is {part}: it is training or validation")
    running = connect(data)
    number = version or _latest(running, name)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn(), console=out
    ) as bar:
        task = bar.add_task(f"{name} {number} {part}", total=None)

        def progress(at: DownloadProgress) -> None:
            bar.update(task, completed=at.bytes, total=at.bytes_total)

        done = download(running.store(), name, number, cast("Part", part), folder, progress=progress)
    out.print(
        f"[green]{done.files} files, {size(done.bytes)}, in {done.folder}[/]; {done.fetched} of them fetched now; every SHA-256 is right."
    )


@app.command()
def demo(
    data: Data = _HUB,
    stay: Annotated[bool, typer.Option(help="When the demo started the hub itself: leave it up until Ctrl-C.")] = False,
) -> None:
    """Send real studies from three trusts through the hub and show the dataset that comes out."""
    from hub_console.demo import run  # noqa: PLC0415 # numpy and the decoders take a second to load

    try:
        read_endpoints(data)
    except NotRunning:
        with signals() as stopping:
            hub = Up.start(data, PartsSettings(), say=lambda text: out.print(escape(text)))
            try:
                run(data.absolute(), connect(data), out, own=not stay)
                if stay:
                    out.print(tables.endpoints_table(hub.endpoints))
                    out.print("The hub stays up. Ctrl-C stops it.")
                    hub.watch(stopping.wait)
            finally:
                with undisturbed():
                    hub.stop()
    else:
        out.print("Using the hub that runs.")
        run(data.absolute(), connect(data), out, own=False)


def parts_settings(s3: str | None, durability: str | None) -> PartsSettings:
    """The environment's settings of the parts, with what the command line says in place of it.

    Raises:
        StartAborted: a setting cannot be; the text says which.
    """
    try:
        given = {"parts_s3": s3, "durability": durability}
        settings = PartsSettings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]  # checked by pydantic
        _ = settings.store
    except ValidationError as error:
        wrong = "; ".join(f"{str(item['loc'][0]).replace('_', '-')}: {item['msg']}" for item in error.errors())
        raise StartAborted(f"settings that cannot be: {wrong}") from None
    except ValueError as error:
        raise StartAborted(str(error)) from None
    return settings


class Stopping:
    """Whether an end was asked for. Before anybody waits for that, asking interrupts what is under way."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._waited_for = False

    def ask(self, _number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        if self._asked.is_set():
            return
        self._asked.set()
        if not self._waited_for:
            raise KeyboardInterrupt

    def wait(self, seconds: float) -> bool:
        """Wait up to so many seconds; whether the end was asked for."""
        self._waited_for = True
        return self._asked.wait(seconds)


@contextmanager
def signals() -> Iterator[Stopping]:
    """Ctrl-C, SIGTERM and the terminal's end ask to stop."""
    stopping = Stopping()
    before = {number: signal.signal(number, stopping.ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not interrupt the stopping."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _receiver(to: str | None, calling: str | None, called: str | None, data: Path) -> tuple[str, int, str, str]:
    """Host, port, called and calling AE title, from the options or else from the hub that runs."""
    if to is not None:
        host, _, port = to.rpartition(":")
        if not host or not port.isdecimal():
            fail(f"--to is {to}: it must be HOST:PORT")
        if calling is None:
            fail("--to needs --calling: our AE title, by which that hub knows the trust")
        return host, int(port), called or AE_TITLE, calling
    endpoints = read_endpoints(data)
    receiver = endpoints["receiver"]
    return receiver["host"], receiver["port"], called or receiver["ae_title"], calling or endpoints["trusts"][0]["ae_titles"][0]


def _latest(running: Running, name: str) -> int:
    versions = [version.version for version in list_datasets(running.store()) if version.dataset == name]
    if not versions:
        raise DatasetMissing(f"there is no dataset {name}: `hub export list` shows what there is")
    return max(versions)


def _dataset_table(version: DatasetVersion) -> Table:
    made = tables.table("Part", "subjects", "studies", "instances", "size", "where", right=["subjects", "studies", "instances", "size"])
    parts: tuple[tuple[Literal["training", "validation"], str], ...] = (
        ("training", "datasets-training"),
        ("validation", "datasets-validation"),
    )
    for part, bucket in parts:
        found = version.part(part)
        place = f"s3://{bucket}/{version.dataset}/{version.version}/"
        made.add_row(part, str(found.subjects), str(found.studies), str(found.instances), size(found.bytes), place)
    return made


if __name__ == "__main__":
    main()
