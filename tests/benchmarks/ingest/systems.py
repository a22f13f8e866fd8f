"""The receivers that are compared, each started anew for each run in an empty folder, and asked afterwards what it has stored."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from confluent_kafka import Consumer, TopicPartition
from hub_ingest.intake import BUCKET, TOPIC
from hub_parts import Parts
from support.parts import ROOT, s3_of

from benchmarks.ingest import sender
from benchmarks.ingest.work import ENHANCED_CT, Work

TRUSTS: Final = f"trusts: [{{name: northgate, ae_titles: [{sender.CALLING}], addresses: [127.0.0.1/32], assigning_authority: RNG}}]\n"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MODULES: Final = {"PYTHONPATH": str(ROOT / "tests")}
_START_SECONDS: Final = 60
_STOP_SECONDS: Final = 20


class NotThere(Exception):
    """A program of others is missing: the text says what to install."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run."""

    seconds: float
    processor_seconds: float
    peak_megabytes: float
    parts_processor_seconds: float = 0.0
    """Of broker and store, where it has them."""


Run = Callable[[Work, int], Measured]
"""Does the work; the number makes its UIDs its own."""


@dataclass(frozen=True, slots=True)
class System:
    """Something that takes instances: `start` gives it running in this empty folder."""

    name: str
    start: Callable[[Path], AbstractContextManager[Run]]
    warm: bool = True
    """Whether it does some work before it is measured."""


def program(name: str, package: str) -> str:
    """Where this program of others is.

    Raises:
        NotThere: nowhere.
    """
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise NotThere(f"{name} is missing: apt-get install {package}")
    return found


def storescp(pdu: int | None = None) -> System:
    """DCMTK's receiver, a process for each association; `pdu`: not its own maximum length but this."""
    path = program("storescp", "dcmtk")

    @contextmanager
    def start(folder: Path) -> Iterator[Run]:
        files = _made(folder / "files")
        port = free_port()
        more = ["--max-pdu", str(pdu)] if pdu is not None else []
        command = [path, "--fork", *more, "--output-directory", str(files), str(port)]
        with _process(command, folder, {"TCP_NODELAY": "1"}) as process:
            wait_for(lambda: _listens(port, process), "storescp")
            yield _receiving(process, port, lambda: _count(files))

    return System("storescp", start)


def orthanc(pdu: int | None = None) -> System:
    """Orthanc with its own storage and index; nothing compressed, nobody asked for a password."""
    path = program("Orthanc", "orthanc")

    @contextmanager
    def start(folder: Path) -> Iterator[Run]:
        port, web = free_port(), free_port()
        configuration = folder / "orthanc.json"
        configuration.write_text(
            json.dumps(
                {
                    "StorageDirectory": str(_made(folder / "storage")),
                    "IndexDirectory": str(folder / "storage"),
                    "StorageCompression": False,
                    "DicomPort": port,
                    "DicomAlwaysAllowStore": True,
                    "DicomCheckCalledAet": False,
                    "DicomCheckModalityHost": False,
                    "HttpPort": web,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "Plugins": [],
                }
                | ({"MaximumPduLength": pdu} if pdu is not None else {})
            )
        )

        def stored() -> int:
            with urllib.request.urlopen(f"http://127.0.0.1:{web}/statistics", timeout=20) as answer:
                return int(json.load(answer)["CountInstances"])

        with _process([path, str(configuration)], folder, {"TCP_NODELAY": "1"}) as process:
            wait_for(lambda: _listens(port, process) and _listens(web, process), "Orthanc")
            yield _receiving(process, port, stored)

    return System("Orthanc", start)


def plain_pynetdicom() -> System:
    """A handler that saves what pynetdicom decoded."""

    @contextmanager
    def start(folder: Path) -> Iterator[Run]:
        files, port = _made(folder / "files"), free_port()
        command = [sys.executable, "-m", "benchmarks.ingest.pynetdicom_receiver", str(port), str(files)]
        with _process(command, folder, {}) as process:
            wait_for(lambda: _listens(port, process), "the pynetdicom receiver")
            yield _receiving(process, port, lambda: _count(files))

    return System("pynetdicom", start)


def hub_disk(workers: int, *, digest: bool = False) -> System:
    """The hub's way in, to files; with `digest` each one's SHA-256 is computed on the way, as for the object store."""

    @contextmanager
    def start(folder: Path) -> Iterator[Run]:
        # No broker and no store is spoken to.
        nowhere = {"HUB_KAFKA_BOOTSTRAP_SERVERS": "-", "HUB_S3_ENDPOINT": "http://-", "HUB_S3_ACCESS_KEY": "-", "HUB_S3_SECRET_KEY": "-"}
        nowhere["HUB_BENCHMARK_DIGEST"] = "yes" if digest else "no"
        with _hub("benchmarks.ingest.file_receiver", folder, workers, nowhere) as (process, port):
            yield _receiving(process, port, lambda: _count(folder / "files"))

    return System(_with(workers, "hub disk and SHA-256" if digest else "hub disk"), start)


def hub_durable(workers: int, parts: Parts) -> System:
    """`hub-receiver` itself: object in S3 and event acknowledged before each answer."""

    @contextmanager
    def start(folder: Path) -> Iterator[Run]:
        before = durable(parts)
        with _hub("hub_ingest.receiver", folder, workers, parts.environment("receiver")) as (process, port):
            yield _receiving(process, port, lambda: durable(parts) - before, parts)

    return System(_with(workers, "hub durable"), start)


def put_and_produce(parts: Parts) -> System:
    """The same objects and events without DICOM."""

    @contextmanager
    def start(folder: Path) -> Iterator[Run]:
        def run(work: Work, number: int) -> Measured:
            kind = int(work.sop_class_uid == ENHANCED_CT)
            arguments = [str(argument) for argument in (kind, work.instances, work.senders, number)]
            before = durable(parts)
            with subprocess.Popen(
                [sys.executable, "-m", "benchmarks.ingest.put_and_produce", *arguments],
                env=os.environ | _MODULES | _hub_environment(folder, parts.environment("receiver")),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as child:
                if child.stdin is None or child.stdout is None or child.stdout.readline() != "ready\n":
                    raise ChildProcessError("PUT and produce did not start")
                process, servers = psutil.Process(child.pid), _processes(parts)
                used, theirs = processor_seconds([process]), processor_seconds(servers)
                child.stdin.write("go\n")
                child.stdin.flush()
                seconds = float(child.stdout.readline())
                measured = Measured(
                    seconds, processor_seconds([process]) - used, peak_megabytes(process), processor_seconds(servers) - theirs
                )
            _check(durable(parts) - before, work.instances)
            return measured

        yield run

    return System("PUT and produce", start, warm=False)


def durable(parts: Parts) -> int:
    """How many instances are objects, which is as many as there are events.

    Raises:
        AssertionError: there are more of the one than of the other.
    """
    objects = sum(1 for _ in s3_of(parts).store().list(BUCKET, "northgate/"))
    consumer = Consumer(parts.kafka_config("admin") | {"group.id": "benchmark"})
    try:
        partitions = consumer.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions
        events = sum(consumer.get_watermark_offsets(TopicPartition(TOPIC, number), timeout=10)[1] for number in partitions)
    finally:
        consumer.close()
    if objects != events:
        raise AssertionError(f"{objects} objects and {events} events")
    return objects


def processor_seconds(roots: list[psutil.Process]) -> float:
    """User and system time of these, of their descendants, and of those that have ended."""
    total = 0.0
    for process in (one for root in roots for one in (root, *root.children(recursive=True))):
        with suppress(psutil.NoSuchProcess):  # it ended, and is counted with its parent's
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def peak_megabytes(root: psutil.Process) -> float:
    """The highest resident memory of each process that lives, added up: what they share is counted for each."""
    return sum(_peak_kibibytes(process.pid) for process in (root, *root.children(recursive=True))) * 1024 / 1e6


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Return when it is so.

    Raises:
        TimeoutError: it was not so within a minute.
    """
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not start within {_START_SECONDS} s")
        time.sleep(0.05)


def _receiving(process: "subprocess.Popen[bytes]", port: int, stored: Callable[[], int], parts: Parts | None = None) -> Run:
    """How a receiver is measured: by what our sender sees, and its processes used meanwhile."""
    root, servers = psutil.Process(process.pid), _processes(parts) if parts is not None else []

    def run(work: Work, number: int) -> Measured:
        had = stored()
        after: list[float] = []

        def measured() -> None:
            after.extend((processor_seconds([root]), processor_seconds(servers), peak_megabytes(root)))

        used, theirs = processor_seconds([root]), processor_seconds(servers)
        seconds = sender.send(port, work, number, measured)
        _check(stored() - had, work.instances)
        return Measured(seconds, after[0] - used, after[2], after[1] - theirs)

    return run


def _check(stored: int, sent: int) -> None:
    if stored != sent:
        raise AssertionError(f"{sent} instances were answered with success and {stored} are there")


@contextmanager
def _hub(module: str, folder: Path, workers: int, environment: dict[str, str]) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    port = free_port()
    command = [sys.executable, "-m", module, "--workers", str(workers)]
    log = folder / "log"
    with _process(command, folder, _hub_environment(folder, environment) | {"HUB_RECEIVER_PORT": str(port)}) as process:

        def listening() -> bool:
            said = log.read_text()
            if process.poll() is not None:
                raise ChildProcessError(f"{module} ended with {process.returncode}: {said[-2000:]}")
            return said.count('"event": "listening"') >= workers

        wait_for(listening, module)
        yield process, port


def _hub_environment(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    trusts = folder / "trusts.yaml"
    trusts.write_text(TRUSTS)
    return environment | {"HUB_TRUSTS_FILE": str(trusts), "HUB_DATA_FOLDER": str(folder), "HUB_DRAIN_SECONDS": "2"}


@contextmanager
def _process(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | _MODULES | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _listens(port: int, process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is not None:
        raise ChildProcessError(f"{process.args!r} ended with {process.returncode}")
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _processes(parts: Parts) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in parts.supervisor.pids().values() if pid is not None]


def _peak_kibibytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


def _with(workers: int, name: str) -> str:
    return name if workers == 1 else f"{name}, {workers} workers"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir()) if folder.exists() else 0
