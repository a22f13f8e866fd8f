"""How all tests are run."""

import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Let the processes that tests start hear Ctrl-C, also when this run was started in the background, where shells have it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one folder together when several run at a time: they share a broker, a store or a hub."""
    for item in items:
        folder = item.path.parent.relative_to(Path(__file__).parent)
        item.add_marker(pytest.mark.xdist_group("e2e kills" if item.path.stem == "test_kills" else str(folder)))
