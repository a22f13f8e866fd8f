"""Set the project up in .venv: `python3 tools/setup.py`, with the system's Python alone.

uv.lock pins every package by version and SHA-256 but names no index: packages come from the index that pip and uv are set to use on this machine.
"""

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv"
STAMP = ENVIRONMENT / ".setup-done"
UV_VERSION = "0.13.9"
MEMBERS = sorted(path.parent for folder in ("libs", "services") for path in (ROOT / folder).glob("*/pyproject.toml"))


def main() -> int:
    """Set up, unless the lock file and the settings are those of the last set-up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--group", action="append", default=["build", "demo", "dev"], help="a dependency group to install besides these")
    groups = sorted(set(parser.parse_args().group))
    problem = missing()
    if problem:
        print(problem, file=sys.stderr)
        return 1
    state = fingerprint(groups)
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == state:
        return 0
    print("Setting up .venv (once, and after each change of the lock file) ...", flush=True)
    uv = find_uv()
    if not (ENVIRONMENT / "bin" / "python").exists():
        run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(ENVIRONMENT)])
    wanted = ENVIRONMENT / "requirements.txt"
    run(
        [
            uv,
            "export",
            "--quiet",
            "--frozen",
            "--offline",
            "--all-packages",
            "--no-emit-workspace",
            *flags(groups),
            "--output-file",
            str(wanted),
        ]
    )
    python = ["--python", str(ENVIRONMENT / "bin" / "python")]
    run([uv, "pip", "sync", "--quiet", "--require-hashes", *python, str(wanted)])
    editable = [part for member in MEMBERS for part in ("--editable", str(member))]
    run([uv, "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", *python, *editable])
    STAMP.write_text(state, encoding="utf-8")
    return 0


def missing() -> str:
    """What the machine lacks, in one line that says how to get it; empty when it lacks nothing."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this script runs before anything could require a version
        return f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: install a newer one and run again with PYTHON=python3.11 make ..."
    if find_uv_on_path() is None and importlib.util.find_spec("ensurepip") is None:
        return "Python's venv module is incomplete here: run `sudo apt-get install python3-venv` (Debian, Ubuntu), then the same command again."
    return ""


def fingerprint(groups: list[str]) -> str:
    """Changes when a set-up would give another result."""
    digest = hashlib.sha256(repr((sys.version, str(ROOT), groups)).encode())
    for path in (ROOT / "uv.lock", *(member / "pyproject.toml" for member in MEMBERS)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def find_uv_on_path() -> str | None:
    """A uv that is here already; an older one may not read the lock file, so the version is what counts."""
    uv = shutil.which("uv")
    if uv is None:
        return None
    version = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False).stdout.split()
    numbers = tuple(int(part) for part in version[1].split(".")[:2]) if len(version) > 1 else (0, 0)
    return uv if numbers >= tuple(int(part) for part in UV_VERSION.split(".")[:2]) else None


def find_uv() -> str:
    """The uv on the path, or one from PyPI in an environment of its own."""
    uv = find_uv_on_path()
    if uv is not None:
        return uv
    private = ROOT / ".venv-uv"
    if not (private / "bin" / "uv").exists():
        run([sys.executable, "-m", "venv", "--clear", str(private)])
        run([str(private / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"uv=={UV_VERSION}"])
    return str(private / "bin" / "uv")


def flags(groups: list[str]) -> list[str]:
    """The groups as uv's options."""
    return [part for group in groups for part in ("--group", group)]


def run(command: list[str]) -> None:
    """Run a command of the set-up; end with its own words when it fails."""
    environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never", "UV_PROJECT_ENVIRONMENT": str(ENVIRONMENT)}
    environment.setdefault("UV_SYSTEM_CERTS", "true")  # a hospital's network has a certificate authority of its own
    environment.pop("VIRTUAL_ENV", None)
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
        print(
            f"The set-up stopped at: {' '.join(command)}\nIts own words stand above. Run the same command again when the cause is gone.",
            file=sys.stderr,
        )
        raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(main())
