"""N processes of one service, each a replica of its own."""

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import NoReturn

from hub_runtime.logs import logger

_PR_SET_PDEATHSIG = 1
_PARENT = "HUB_PARENT_PID"
_LONGEST_PAUSE = 30.0
_SETTLED_SECONDS = 60.0
log = logger()


def die_with_parent(sign: int = signal.SIGTERM) -> None:
    """In a process that the hub started: get `sign` when the parent dies (prctl(2), PR_SET_PDEATHSIG), at once if it is dead already."""
    parent = os.environ.get(_PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, sign, 0, 0, 0)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), sign)


def child_environment(**more: str) -> dict[str, str]:
    """This process's environment for a child that shall `die_with_parent`."""
    return {**os.environ, _PARENT: str(os.getpid()), **more}


def is_worker() -> bool:
    """Whether this process is one of `--workers N`."""
    return "HUB_WORKER" in os.environ


def exit_now(code: int) -> NoReturn:
    """End the process without waiting for threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclass
class _Worker:
    number: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    not_before: float = field(default=0.0)

    def start(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, env=self.environment)  # noqa: S603 - our own command line again
        self.started = time.monotonic()
        log.info("worker started", worker=self.number, pid=self.process.pid)

    def bury(self) -> None:
        """Note the death, and when to start again: at once the first time, later and later when it dies young."""
        code = self.process.returncode if self.process is not None else 0
        lived = time.monotonic() - self.started
        self.process = None
        self.failures = 0 if lived > _SETTLED_SECONDS else self.failures + 1
        pause = min(_LONGEST_PAUSE, 0.5 * 2 ** (self.failures - 1)) * random.uniform(0.75, 1.25) if self.failures else 0.0  # noqa: S311 - jitter
        self.not_before = time.monotonic() + pause
        log.warning("worker died; it is started again", worker=self.number, exit_code=code, seconds=round(pause, 2))


def run_workers(count: int, *, replica: str, health_port: int, stop_seconds: float) -> int:
    """Keep `count` processes of this very command running until SIGTERM or SIGINT; the exit code.

    Worker i is replica `<replica>-i`, stable over restarts, and serves its health on `health_port` + i (any free port where that is 0).
    SIGTERM is passed on; who has not ended after `stop_seconds` is killed. When this process dies, its workers get SIGTERM.
    """
    command = [sys.executable, *sys.orig_argv[1:]]
    workers = [
        _Worker(
            number,
            child_environment(
                HUB_WORKER=str(number), HUB_REPLICA=f"{replica}-{number}", HUB_HEALTH_PORT=str(health_port + number if health_port else 0)
            ),
        )
        for number in range(count)
    ]
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stopping.append(number))
    while not stopping:
        for worker in workers:
            if worker.process is not None and worker.process.poll() is not None:
                worker.bury()
            if worker.process is None and time.monotonic() >= worker.not_before and not stopping:
                worker.start(command)
        time.sleep(0.2)
    return _stop([worker.process for worker in workers if worker.process is not None], stop_seconds)


def _stop(processes: list["subprocess.Popen[bytes]"], stop_seconds: float) -> int:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + stop_seconds
    codes = []
    for process in processes:
        try:
            codes.append(process.wait(timeout=max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            process.kill()
            codes.append(process.wait())
    return 0 if not any(codes) else 1
