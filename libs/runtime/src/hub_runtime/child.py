"""The child process of `handlers.InChild`: gets its setup, makes the handler, then takes records and gives outcomes over one pipe."""

import contextlib
import importlib
import json
import os
import pickle
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from hub_runtime import workers
from hub_runtime.handlers import Handled, Handler, Refused, Stop, call, outcome_of
from hub_runtime.logs import configure_logging

EXIT_OUT_OF_MEMORY = 71


def main() -> None:
    """Run until the parent closes the pipe or dies."""
    # The parent decides when a child ends, while Ctrl-C reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    workers.die_with_parent(signal.SIGKILL)
    sys.path[:] = json.loads(os.environ.pop("HUB_CHILD_PATH"))
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    try:
        with contextlib.suppress(EOFError, BrokenPipeError):
            _serve(Connection(descriptor))
    except MemoryError:
        # After one, nothing in this process is sure; the record is the parent's again.
        workers.exit_now(EXIT_OUT_OF_MEMORY)


def _serve(pipe: "Connection[Any, Any]") -> None:
    child, settings, passing_faults, service = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from our own parent, by an inherited pipe
    configure_logging(service, replica=settings.replica, strict=settings.log_strict)
    if child.memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (child.memory_bytes, child.memory_bytes))
    module, _, function = child.factory.partition(":")
    try:
        handle: Handler = getattr(importlib.import_module(module), function)(settings)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - told to the parent, which decides
        outcome = outcome_of(error, passing_faults)
        pipe.send(Stop(f"the factory {child.factory} failed with {type(error).__name__}", 70) if isinstance(outcome, Refused) else outcome)
        return
    pipe.send(Handled(()))
    while True:
        event, record = pipe.recv()
        pipe.send(call(handle, event, record, passing_faults))


if __name__ == "__main__":
    main()
