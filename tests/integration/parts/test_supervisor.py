"""The supervisor with small programs: what the parts and the services rely on."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hub_parts import PART, SERVICE, AlreadyRunning, Program, ProgramUnknown, StartAborted, Supervisor

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
# Forks a child that is in a session of its own, so that neither group nor parent takes it along.
WITH_GRANDCHILD = [
    sys.executable,
    "-c",
    "import subprocess, sys, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A path that config files and sockets find hard: a space, a percent sign, more than 107 bytes."""
    return tmp_path / "a folder 100%s" / ("x" * 80)


@pytest.fixture
def supervisor(folder: Path) -> Iterator[Supervisor]:
    with Supervisor(folder) as one:
        one.start()
        yield one


def of_run(folder: Path) -> list[psutil.Process]:
    """The processes that carry the mark of the folder's last run."""
    mark = (folder / "run" / "id").read_text()
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HUB_RUN") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def eventually(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def crash(supervisor: Supervisor, name: str) -> int:
    pid = supervisor.pid(name)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_program_runs_with_its_environment_and_nothing_of_ours(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_SECRET_OF_ANOTHER", "x")
    script = "import os, time; print(dict(os.environ), flush=True); time.sleep(600)"
    value = 'it\'s "quoted", 100% {odd}'
    supervisor.add(Program("printer", [sys.executable, "-c", script], {"HUB_VALUE": value}))
    supervisor.wait_healthy()
    eventually(lambda: supervisor.log("printer").read_text())
    environment = eval(supervisor.log("printer").read_text())
    assert environment["HUB_VALUE"] == value
    assert "HUB_SECRET_OF_ANOTHER" not in environment
    assert environment["TMPDIR"].startswith(str(supervisor.data_folder))


def test_a_crashed_program_is_started_again(supervisor: Supervisor) -> None:
    supervisor.add(Program("worker", SLEEP), Program("other", SLEEP))
    supervisor.wait_healthy()
    other = supervisor.pid("other")
    dead = crash(supervisor, "worker")
    eventually(lambda: supervisor.pid("worker") not in {dead, None})
    assert supervisor.pid("other") == other
    assert set(supervisor.pids()) == {"worker", "other"}


def test_one_that_crashes_again_and_again_is_started_ever_more_slowly(supervisor: Supervisor, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    supervisor.add(Program("broken", ["/bin/sh", "-c", f"echo start >> '{starts}'; exit 3"]))
    time.sleep(4)
    assert 2 <= len(starts.read_text().splitlines()) <= 5
    assert supervisor.states()["broken"] in {"BACKOFF", "STARTING"}


def test_a_program_that_ends_while_it_starts_is_an_error_with_its_own_words(supervisor: Supervisor) -> None:
    supervisor.add(Program("broken", [sys.executable, "-c", "raise SystemExit('the disk is full')"], health=lambda: False))
    with pytest.raises(StartAborted, match=r"(?s)broken ended while it started.*the disk is full"):
        supervisor.wait_healthy(timeout_seconds=20)


def test_a_program_that_does_not_exist_is_an_error(supervisor: Supervisor) -> None:
    supervisor.add(Program("absent", ["/no/such/program"]))
    eventually(lambda: supervisor.states()["absent"] == "BACKOFF")
    with pytest.raises(StartAborted, match="No such file"):
        supervisor.wait_healthy(["absent"])


def test_one_that_is_never_healthy_is_an_error(supervisor: Supervisor) -> None:
    supervisor.add(Program("sick", SLEEP, health=lambda: False))
    with pytest.raises(StartAborted, match="sick was not healthy after 1 s"):
        supervisor.wait_healthy(timeout_seconds=1)
    assert not supervisor.healthy("sick")


def test_stopped_stays_stopped_until_it_is_started(supervisor: Supervisor) -> None:
    supervisor.add(Program("worker", SLEEP), Program("later", SLEEP, start=False))
    supervisor.wait_healthy(["worker"])
    assert supervisor.pid("later") is None
    supervisor.stop_program("worker")
    supervisor.stop_program("worker")
    time.sleep(0.5)
    assert supervisor.pid("worker") is None
    supervisor.start_program("worker")
    supervisor.start_program("later")
    supervisor.wait_healthy()
    supervisor.start_program("worker")
    before = supervisor.pid("worker")
    supervisor.restart("worker")
    supervisor.wait_healthy()
    assert supervisor.pid("worker") != before
    with pytest.raises(ProgramUnknown, match="misspelt"):
        supervisor.pid("misspelt")


def test_services_stop_before_the_parts_they_need(supervisor: Supervisor, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    script = textwrap.dedent("""
        import signal, sys, time
        def end(*_):
            time.sleep(float(sys.argv[2]))
            open(sys.argv[3], "a").write(sys.argv[1] + "\\n")
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        time.sleep(600)
    """)

    def program(name: str, seconds: float, priority: int) -> Program:
        return Program(
            name,
            [sys.executable, "-c", script, name, str(seconds), str(ended)],
            priority=priority,
            health=lambda: supervisor.log(name).exists(),
        )

    supervisor.add(
        program("part-a", 0, PART), program("part-b", 0.7, PART), program("service-a", 0.7, SERVICE), program("service-b", 0.8, SERVICE)
    )
    supervisor.wait_healthy()
    eventually(lambda: all("ready" in supervisor.log(name).read_text() for name in supervisor.pids()))
    begin = time.monotonic()
    supervisor.stop()
    assert ended.read_text().split() == ["service-a", "service-b", "part-a", "part-b"]
    assert time.monotonic() - begin < 4, "those of one stage stop together"


def test_what_does_not_stop_is_killed(supervisor: Supervisor, folder: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    supervisor.add(Program("deaf", [sys.executable, "-c", deaf], stop_seconds=1), Program("frozen", SLEEP, stop_seconds=1))
    supervisor.wait_healthy()
    eventually(lambda: "ready" in supervisor.log("deaf").read_text())
    supervisor.signal("frozen", signal.SIGSTOP)
    supervisor.stop()
    assert of_run(folder) == []


def test_stop_takes_along_what_a_program_forked(supervisor: Supervisor, folder: Path) -> None:
    supervisor.add(Program("forker", WITH_GRANDCHILD))
    eventually(lambda: "sleep" in {process.name() for process in of_run(folder)})
    supervisor.stop()
    supervisor.stop()
    assert of_run(folder) == []


def test_the_supervisor_itself_killed_leaves_nothing(supervisor: Supervisor, folder: Path) -> None:
    supervisor.add(Program("worker", SLEEP), Program("forker", WITH_GRANDCHILD))
    supervisor.wait_healthy()
    eventually(lambda: "sleep" in {process.name() for process in of_run(folder)})
    assert supervisor.daemon_pid is not None
    os.kill(supervisor.daemon_pid, signal.SIGKILL)
    eventually(lambda: {process.name() for process in of_run(folder)} <= {"sleep"}, 5)
    supervisor.stop()
    assert of_run(folder) == []


PARENT = """
import sys, time
from pathlib import Path
from hub_parts import Program, Supervisor
supervisor = Supervisor(Path(sys.argv[1]))
supervisor.start()
supervisor.add(*(Program(name, {command!r}) for name in ("one", "two")))
supervisor.wait_healthy()
print(supervisor.daemon_pid, flush=True)
time.sleep(600)
"""


def start_parent(folder: Path, command: list[str]) -> tuple[subprocess.Popen[str], int]:
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(command=command), str(folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    daemon = int(parent.stdout.readline())
    parent.stdout.close()
    return parent, daemon


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_the_death_of_who_started_it_stops_everything(folder: Path, number: signal.Signals) -> None:
    parent, _ = start_parent(folder, SLEEP)
    assert len(of_run(folder)) == 3
    parent.send_signal(number)
    parent.wait()
    eventually(lambda: of_run(folder) == [], 10)


def test_the_next_start_waits_for_the_last_one_to_end_and_takes_its_remains_away(folder: Path) -> None:
    parent, daemon = start_parent(folder, WITH_GRANDCHILD)
    earlier = folder / "run" / "id"
    eventually(lambda: [process.name() for process in of_run(folder)].count("sleep") == 2)
    orphans = [process for process in of_run(folder) if process.name() == "sleep"]
    parent.kill()
    os.kill(daemon, signal.SIGKILL)
    parent.wait()
    mark = earlier.read_text()
    with Supervisor(folder) as supervisor:
        supervisor.start()
        assert earlier.read_text() != mark
        assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in orphans)


def test_a_folder_has_one_supervisor(supervisor: Supervisor, folder: Path) -> None:
    supervisor.add(Program("worker", SLEEP))
    with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"), Supervisor(folder) as second:
        second.start()
    supervisor.wait_healthy()


def test_what_it_writes_down_is_for_its_owner_alone(supervisor: Supervisor, folder: Path) -> None:
    supervisor.add(Program("worker", SLEEP, {"HUB_PASSWORD": "x"}))
    assert folder.stat().st_mode & 0o077 == 0
    private = [folder / "run" / "supervisord.conf", folder / "run" / "programs" / "worker.json"]
    assert [path.stat().st_mode & 0o777 for path in private] == [0o600, 0o600]


def test_files_left_outside_are_deleted_when_the_program_has_ended(supervisor: Supervisor, tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    supervisor.add(Program("worker", ["/bin/sh", "-c", f"touch '{socket}'; exec sleep 600"], leftovers=(socket,)))
    eventually(socket.exists)
    supervisor.stop()
    assert not socket.exists()
