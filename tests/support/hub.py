"""The whole hub as a user has it: `hub up` in a folder of its own, its endpoints, and ways to kill its parts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from support.senders import STORESCU, Peer, storescu

BIN = Path(sys.executable).parent
START_SECONDS = 120
STOP_SECONDS = 60


class Hub:
    """One running hub. `start` waits until every service is ready; `stop` ends it as Ctrl-C does and checks that nothing is left."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = os.environ | environment
        self.process: subprocess.Popen[bytes] | None = None
        self.output = folder.parent / f"{folder.name}.out"

    def start(self) -> "Hub":
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [BIN / "hub", "up", "--data", self.folder],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._up, START_SECONDS, lambda: f"the hub did not come up:\n{self.output.read_text()[-4000:]}")
        return self

    def _up(self) -> bool:
        assert self.process
        assert self.process.poll() is None, f"hub up ended by itself:\n{self.output.read_text()[-4000:]}"
        try:
            return bool(self.endpoints["supervisor"]["pid"] and self.endpoints["receiver"]["port"])
        except (FileNotFoundError, KeyError, ValueError):
            return False

    @property
    def endpoints(self) -> Any:
        """What `hub up` wrote for scripts."""
        return json.loads((self.folder / "endpoints.json").read_text())

    def command(self, *arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a `hub` command against this hub."""
        environment = self.environment | {"HUB_DATA_FOLDER": str(self.folder), "COLUMNS": "200"}
        return subprocess.run(
            [BIN / "hub", *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def json(self, *arguments: str | Path) -> Any:
        """What a `hub … --json` command printed."""
        result = self.command(*arguments, "--json")
        assert result.returncode == 0, result.stdout + result.stderr
        return json.loads(result.stdout)

    def qido(self, path: str, **parameters: str) -> list[dict[str, Any]]:
        """A QIDO-RS search; `path` is below the service's root."""
        token = self.endpoints["qido"]["token_file"]
        headers = {"Authorization": f"Bearer {Path(token).read_text().strip()}", "Accept": "application/dicom+json"}
        response = httpx.get(f"{self.endpoints['qido']['url']}/{path}", params=parameters, headers=headers, timeout=30)
        assert response.status_code in (200, 204), f"{response.status_code}: {response.text}"
        return response.json() if response.status_code == 200 else []

    def indexed(self) -> int:
        """How many research instances can be found."""
        return sum(study["00201208"]["Value"][0] for study in self.qido("studies", limit="1000", includefield="all"))

    def indexed_or_none(self) -> int | None:
        """The same, or None while the index does not answer."""
        try:
            return self.indexed()
        except (httpx.HTTPError, AssertionError, OSError, ValueError):
            return None

    def pid(self, program: str) -> int:
        """The process of a service or part, by its name in endpoints.json."""
        endpoints = self.endpoints
        return int((endpoints["services"] | endpoints["parts"])[program]["pid"])

    def kill(self, program: str) -> None:
        """SIGKILL a service or part, with all that it has started; the supervisor starts it again."""
        process = psutil.Process(wait_for(lambda: alive(self.pid(program)) and self.pid(program), 30, f"{program} does not run"))
        for victim in (process, *process.children(recursive=True)):
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue

    def stop(self) -> None:
        assert self.process
        family = (
            [self.process.pid, *(child.pid for child in psutil.Process(self.process.pid).children(recursive=True))]
            if psutil.pid_exists(self.process.pid)
            else []
        )
        self.process.send_signal(signal.SIGINT)
        self.process.wait(STOP_SECONDS)
        wait_for(lambda: not [pid for pid in family if alive(pid)], 10, lambda: f"left behind: {[pid for pid in family if alive(pid)]}")


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], Any], seconds: float, complaint: Callable[[], str] | str, interval: float = 0.25) -> Any:
    """The first true value of `condition`, or an assertion error with the complaint after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(complaint if isinstance(complaint, str) else complaint())
        time.sleep(interval)


def send(hub: Hub, calling: str, paths: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    """Send files as a trust's router: with DCMTK's storescu where it is, with the hub's own sender elsewhere."""
    if STORESCU:
        receiver = hub.endpoints["receiver"]
        return storescu(Peer(receiver["port"], receiver["host"], receiver["ae_title"], calling), paths)
    return hub.command("send", "--calling", calling, *paths)
