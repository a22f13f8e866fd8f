"""The set-up says in one line what a machine lacks, and the lock names no index."""

import importlib.util
import shutil
import sys

import pytest
from support.tools import ROOT, tool


def test_a_machine_without_venv_and_uv_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = tool("setup")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "apt-get install python3-venv" in setup.missing()
    assert "\n" not in setup.missing()


def test_an_old_python_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = tool("setup")
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    assert "Python 3.11 or newer is needed" in setup.missing()


def test_a_complete_machine_lacks_nothing() -> None:
    assert tool("setup").missing() == ""


def test_a_change_of_lock_or_groups_makes_a_new_set_up() -> None:
    setup = tool("setup")
    assert setup.fingerprint(["dev"]) == setup.fingerprint(["dev"])
    assert setup.fingerprint(["dev"]) != setup.fingerprint(["dev", "minio"])


def test_the_lock_loses_addresses_and_keeps_pins() -> None:
    lock = tool("lock")
    text = (
        'source = { registry = "https://mirror.example/simple" }\n'
        'wheels = [{ url = "https://files.example/a/b/x-1.0-py3-none-any.whl", hash = "sha256:ab", size = 1 }]'
    )
    clean = lock.without_addresses(text)
    assert "example" not in clean
    assert 'x-1.0-py3-none-any.whl", hash = "sha256:ab"' in clean
    assert lock.without_addresses(clean) == clean
    committed = (ROOT / "uv.lock").read_text()
    assert lock.without_addresses(committed) == committed
