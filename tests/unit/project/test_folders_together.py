"""Run side by side, the tests of one folder stay in one process: they share brokers and hubs, and count what those have seen."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_no_folder_is_torn_apart() -> None:
    recipe = re.search(r"^PARALLEL := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    folders = ["tests/unit/closer", "tests/unit/indexing"]
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *recipe[1].split(), *folders]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    workers = re.findall(r"\[(gw\d+)\].* PASSED (tests/unit/\w+)/", run.stdout)
    assert len(workers) > 10
    assert len(set(workers)) == len(folders), set(workers)
