"""Programs under supervisord: started, watched, started again after a crash, stopped in order, nothing left behind."""

import contextlib
import fcntl
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hub_parts import supervisord, tether
from hub_parts.errors import AlreadyRunning, ProgramUnknown, StartAborted, log_tail
from hub_parts.files import write_private
from hub_parts.ports import free_port

PART = 100
"""Priority of the parts: they stop after everything of a higher one has ended."""
SERVICE = 500
"""Priority of the services, which need the parts to stop well."""

RUN_VARIABLE = "HUB_RUN"
"""Marks the processes of one data folder and run in their environment, so that what a killed program leaves behind is found."""


@dataclass(frozen=True)
class Program:
    """One program to keep running."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Its whole environment, except for PATH, LANG, HOME and TMPDIR, which have defaults."""
    health: Callable[[], bool] | None = None
    """Says whether it serves; asked again and again from one thread, and must return within a few seconds. None: it is healthy once it runs."""
    stop_seconds: float = 20.0
    """How long it may take to stop after `stop_signal` before it is killed."""
    stop_signal: signal.Signals = signal.SIGTERM
    priority: int = SERVICE
    folder: Path | None = None
    """Working directory; the data folder's `tmp` when None."""
    start: bool = True
    leave_root: bool = False
    """Run it in a user namespace without root's rights when we are root."""
    parent_death_signal: signal.Signals = signal.SIGKILL
    """What the kernel sends it when the supervisor is killed."""
    leftovers: tuple[Path, ...] = ()
    """Files that it makes outside the data folder and may leave there; deleted once it has ended."""


class Supervisor:
    """supervisord as a child process; every method may be called from any thread.

    `stop` leaves no process behind. So does the death of this process (supervisord notices and stops all in order) and that of
    supervisord (the kernel kills its children; `stop` and the next `start` kill what they had forked).
    """

    def __init__(self, data_folder: Path) -> None:
        self.data_folder = data_folder.absolute()
        self.logs = self.data_folder / "logs"
        self.temporary = self.data_folder / "tmp"
        self._run = self.data_folder / "run"
        self._programs: dict[str, Program] = {}
        self._daemon: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()
        self._lock_file: int | None = None
        self._port = 0
        self._password = secrets.token_urlsafe(24)
        self._id = secrets.token_hex(16)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start supervisord with no program yet. What an earlier, killed run of this data folder left running is killed first.

        Raises:
            AlreadyRunning: Another process runs this data folder.
            StartAborted: supervisord did not come up.
        """
        for folder in (self.data_folder, self.logs, self.temporary, self._run, self._run / "programs"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_folder()
        earlier = self._run / "id"
        if earlier.exists():
            kill_marked(earlier.read_text(encoding="ascii").strip())
            supervisord.delete_leftovers(self._run)
        earlier.write_text(self._id, encoding="ascii")
        self._port = free_port()
        self._write_config()
        assert self._lock_file is not None  # noqa: S101 - for the type checker: _take_folder has set it
        with (self.logs / "supervisord.err").open("wb") as errors:
            self._daemon = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-I", "-W", "ignore", supervisord.__file__, str(os.getpid()), str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=self.data_folder,
                env=self._environment({}),
                start_new_session=True,  # Ctrl-C is for us; we stop the programs in order
                pass_fds=(self._lock_file,),  # while supervisord still stops things, the folder is not free
            )
        deadline = time.monotonic() + 20
        while True:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise StartAborted(f"supervisord did not start: {log_tail(self.logs / 'supervisord.err')}")
            with contextlib.suppress(OSError, HTTPException):
                self._call("getState")
                return
            time.sleep(0.02)

    def add(self, *programs: Program) -> None:
        """Take programs in and start those with `start`; returns before they are up."""
        with self._lock:
            for program in programs:
                self._programs[program.name] = program
                text = json.dumps(
                    {
                        "command": program.command,
                        "environment": self._environment(program.environment),
                        "folder": str(program.folder or self.temporary),
                        "leave_root": program.leave_root,
                        "parent_death_signal": int(program.parent_death_signal),
                        "leftovers": [str(path) for path in program.leftovers],
                    }
                )
                write_private(self._run / "programs" / f"{program.name}.json", text)
            self._write_config()
            self._call("reloadConfig")
            for program in programs:
                self._call("addProcessGroup", program.name)

    def wait_healthy(self, names: Iterable[str] | None = None, *, timeout_seconds: float = 60.0) -> None:
        """Wait until the programs run and say that they are healthy; all of them when no names are given.

        Raises:
            StartAborted: One crashed twice or was not healthy in time; the text holds the end of its log.
        """
        waiting = set(self._programs if names is None else names)
        deadline = time.monotonic() + timeout_seconds
        while waiting:
            for name in sorted(waiting):
                program, information = self._program(name), self._information(name)
                if information["statename"] in {"BACKOFF", "FATAL", "EXITED"}:
                    raise StartAborted(
                        f"{name} ended while it started ({information['spawnerr']}). Its log ends:\n{log_tail(self.log(name))}"
                    )
                if information["pid"] and (program.health is None or program.health()):
                    waiting.discard(name)
            if waiting and time.monotonic() > deadline:
                name = min(waiting)
                raise StartAborted(f"{name} was not healthy after {timeout_seconds:.0f} s. Its log ends:\n{log_tail(self.log(name))}")
            if waiting:
                time.sleep(0.05)

    def healthy(self, name: str) -> bool:
        """Whether the program runs and says that it serves."""
        program = self._program(name)
        return self.pid(name) is not None and (program.health is None or program.health())

    def log(self, name: str) -> Path:
        """The file that holds what the program writes to stdout and stderr."""
        return self.logs / f"{name}.log"

    def pid(self, name: str) -> int | None:
        """The program's process id, None while it does not run."""
        return self._information(name)["pid"] or None

    def pids(self) -> dict[str, int | None]:
        """Every program's process id, None for one that does not run."""
        with self._lock:
            return {one["name"]: one["pid"] or None for one in self._call("getAllProcessInfo")}

    def states(self) -> dict[str, str]:
        """Every program's state in supervisord's words: RUNNING, BACKOFF, STOPPED ..."""
        with self._lock:
            return {one["name"]: one["statename"] for one in self._call("getAllProcessInfo")}

    def start_program(self, name: str) -> None:
        """Start a program that is stopped; returns before it is healthy. Starting one that runs changes nothing."""
        self._program(name)
        with contextlib.suppress(AlreadyDone):
            self._call("startProcess", name, False)

    def stop_program(self, name: str) -> None:
        """Stop a program and wait until its process has ended; it stays stopped until `start_program`."""
        program = self._program(name)
        with contextlib.suppress(AlreadyDone):
            self._call("stopProcess", name, False)
        deadline = time.monotonic() + program.stop_seconds + 10
        while self._information(name)["statename"] not in {"STOPPED", "EXITED", "FATAL"}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} did not stop within {program.stop_seconds + 10:.0f} s")
            time.sleep(0.05)

    def restart(self, name: str) -> None:
        """Stop a program and start it again; returns before it is healthy."""
        self.stop_program(name)
        self.start_program(name)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to the program's process alone: SIGKILL makes a crash (it is started again), SIGSTOP a hang."""
        pid = self.pid(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @property
    def daemon_pid(self) -> int | None:
        """Supervisord's own process id, None when it does not run."""
        return self._daemon.pid if self._daemon is not None and self._daemon.poll() is None else None

    def stop(self) -> None:
        """Stop the services, then the parts, then supervisord; kill what does not stop in time. May be called twice."""
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            if daemon.poll() is None:
                # What is stopped with SIGSTOP would not hear the request to end.
                with contextlib.suppress(OSError, HTTPException, AlreadyDone):
                    self._daemon = daemon
                    for pid in self.pids().values():
                        if pid is not None:
                            os.kill(pid, signal.SIGCONT)
                self._daemon = None
                daemon.terminate()
                patience = sum(
                    max((one.stop_seconds for one in self._programs.values() if one.priority == stage), default=0)
                    for stage in {one.priority for one in self._programs.values()}
                )
                try:
                    daemon.wait(patience + 10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
            daemon.wait()
            kill_marked(self._id)
            supervisord.delete_leftovers(self._run)
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def _take_folder(self) -> None:
        """Hold the data folder's lock until `stop`, and through supervisord until that has ended too."""
        handle = os.open(self._run / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + 45
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = os.pread(handle, 32, 0).decode("ascii").strip()
                # An owner that is gone leaves a supervisord that is about to end.
                if (owner.isdigit() and Path(f"/proc/{owner}").exists()) or time.monotonic() > deadline:
                    os.close(handle)
                    raise AlreadyRunning(
                        f"the parts in {self.data_folder} are already running (process {owner}): use them, stop that process, "
                        "or choose another folder with HUB_DATA_FOLDER"
                    ) from None
                time.sleep(0.1)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode("ascii"), 0)
        self._lock_file = handle

    def _environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """A program's environment: nothing of ours leaks into it but where programs and languages are."""
        inherited = {
            name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ
        }
        folders = {"HOME": str(self.temporary), "TMPDIR": str(self.temporary)}
        return {**inherited, **folders, **own, RUN_VARIABLE: self._id}

    @property
    def _config(self) -> Path:
        return self._run / "supervisord.conf"

    def _write_config(self) -> None:
        lines = [
            "[supervisord]",
            "nodaemon=true",
            "silent=true",
            "user=root" if os.getuid() == 0 else "",
            # Relative to the data folder, because supervisord expands `%` in them once here and twice there.
            "logfile=logs/supervisord.log",
            "pidfile=run/supervisord.pid",
            "childlogdir=logs",
            "umask=077",
            "[inet_http_server]",
            f"port=127.0.0.1:{self._port}",
            "username=hub",
            f"password={self._password}",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        ]
        for program in self._programs.values():
            command = shlex.join([sys.executable, "-I", "-S", str(Path(tether.__file__).absolute()), f"run/programs/{program.name}.json"])
            lines += [
                f"[program:{program.name}]",
                f"command={command.replace('%', '%%')}",
                f"priority={program.priority}",
                f"autostart={str(program.start).lower()}",
                "autorestart=true",
                "startsecs=1",
                "startretries=1000000",  # a delay that grows by a second each time, and never an end
                f"stopsignal={program.stop_signal.name.removeprefix('SIG')}",
                f"stopwaitsecs={max(1, round(program.stop_seconds))}",
                "killasgroup=true",
                "redirect_stderr=true",
                f"stdout_logfile=logs/{program.name}.log",
                "stdout_logfile_maxbytes=20MB",
                "stdout_logfile_backups=3",
            ]
        write_private(self._config, "\n".join(lines) + "\n")

    def _program(self, name: str) -> Program:
        try:
            return self._programs[name]
        except KeyError:
            raise ProgramUnknown(f"{name}: the supervisor knows {sorted(self._programs)}") from None

    def _information(self, name: str) -> dict[str, Any]:
        self._program(name)
        information: dict[str, Any] = self._call("getProcessInfo", name)
        return information

    def _call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - XML-RPC has no types
        with self._lock:
            if self._daemon is None:
                raise ConnectionError("the supervisor does not run")
            address = f"http://hub:{self._password}@127.0.0.1:{self._port}/RPC2"
            try:
                with xmlrpc.client.ServerProxy(address, transport=_Transport()) as proxy:
                    return getattr(proxy.supervisor, method)(*arguments)
            except xmlrpc.client.Fault as fault:
                if fault.faultCode in ALREADY_DONE:
                    raise AlreadyDone(fault.faultString) from None
                raise


class AlreadyDone(Exception):
    """What was asked of supervisord is so already."""


ALREADY_DONE = {60, 70, 90}
"""ALREADY_STARTED, NOT_RUNNING, ALREADY_ADDED of supervisor.xmlrpc.Faults."""


class _Transport(xmlrpc.client.Transport):
    """XML-RPC that does not wait for ever."""

    def make_connection(self, host: Any) -> HTTPConnection:  # noqa: ANN401 - typeshed's own type is a union of private ones
        connection = super().make_connection(host)
        connection.timeout = 15.0
        return connection


def kill_marked(run: str) -> list[int]:
    """Kill the processes whose environment carries this run's mark, and wait until they are gone; returns their ids."""
    mark = f"{RUN_VARIABLE}={run}".encode("ascii")
    killed: list[int] = []
    for _ in range(100):
        alive = [pid for pid in _marked(mark) if pid != os.getpid()]
        if not alive:
            break
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed += alive
        time.sleep(0.05)
    return sorted(set(killed))


def _marked(mark: bytes) -> Iterable[int]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # gone meanwhile, or not ours
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name)
