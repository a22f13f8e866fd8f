"""How all tests are run."""

import signal
from pathlib import Path
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling


def pytest_configure() -> None:
    """Let the processes that tests start hear Ctrl-C, also when this run was started in the background, where shells have it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class ByFolder(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist is not typed
    """The tests of one folder run in one process, in their order: they share a broker, a store or a hub.

    By marks (`--dist loadgroup`) it does not work: pytest-xdist 3.8 writes the group into a field that pytest 9.2 does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return "e2e kills" if file.stem == "test_kills" else str(file.parent)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Any:
    """Take `ByFolder` for `--dist loadscope`."""
    return ByFolder(config, log) if config.getoption("dist") == "loadscope" else None
