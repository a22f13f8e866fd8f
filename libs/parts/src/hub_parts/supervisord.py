"""The supervisor's process: supervisord, tied to the process that started it: `python -I supervisord.py PARENT_PID CONFIG`.

It imports nothing of the project, so that it is up at once.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from supervisor import supervisord
from supervisor.options import ServerOptions
from supervisor.states import SupervisorStates

POLL_SECONDS = 0.2
"""supervisord looks once a second for children that ended; a restart should not wait for that."""


class Tethered(supervisord.Supervisor):  # type: ignore[misc]  # supervisor ships no types
    """supervisord that stops everything, in order, when the process that started it is gone."""

    def __init__(self, options: Any, parent: int) -> None:  # noqa: ANN401 - supervisor ships no types
        super().__init__(options)
        self.parent = parent
        poll = options.poller.poll
        options.poller.poll = lambda timeout: poll(min(timeout, POLL_SECONDS))
        options.fork = fork

    def tick(self, now: float | None = None) -> None:
        """Called in each turn of supervisord's loop."""
        super().tick(now)
        if os.getppid() != self.parent and self.options.mood > SupervisorStates.SHUTDOWN:
            self.options.logger.warn(  # noqa: G010 - supervisor's own logger knows no `warning`
                "the process that started this supervisor is gone: stopping everything"
            )
            self.options.mood = SupervisorStates.SHUTDOWN

    def ordered_stop_groups_phase_1(self) -> None:
        """Stop all programs of the highest priority together, and only when none is left those of the next."""
        waiting = [group for group in self.process_groups.values() if group.get_unstopped_processes()]
        stage = max((group.config.priority for group in waiting), default=0)
        for group in waiting:
            if group.config.priority == stage:
                group.stop_all()

    def ordered_stop_groups_phase_2(self) -> None:
        """Nothing: phase 1 looks at the processes themselves."""


def delete_leftovers(run: Path) -> None:
    """Delete what the programs of this `run` folder left outside it, and forget the programs; only when they have ended."""
    for program in (run / "programs").glob("*.json"):
        for path in json.loads(program.read_text(encoding="utf-8"))["leftovers"]:
            Path(path).unlink(missing_ok=True)
        program.unlink()


def fork() -> int:
    """os.fork for a child that a signal ends from its first instruction on: with supervisord's handlers it would swallow a stop that comes before exec."""
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)
    signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    try:
        pid = os.fork()
        if pid == 0:
            for number in caught:
                signal.signal(number, signal.SIG_DFL)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)


def main() -> None:
    """Run until a shutdown is asked for or the parent is gone."""
    parent = int(sys.argv[1])
    options = ServerOptions()
    options.realize(["--nodaemon", "--configuration", sys.argv[2]])
    options.first = True
    options.test = False
    try:
        Tethered(options, parent).main()
    except supervisord.asyncore.ExitNow:
        pass
    finally:
        if os.getppid() != parent:
            # Nobody is there any more to do it after us.
            delete_leftovers(Path(sys.argv[2]).parent)
        options.close_httpservers()
        options.close_logger()


if __name__ == "__main__":
    main()
