"""Work on the parts that is done once: `python -m hub_parts build-minio` and `python -m hub_parts lock-jars`."""

import argparse
import os
from pathlib import Path

from hub_parts import jars, minio_build


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m hub_parts", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    cache = os.environ.get("HUB_CACHE_FOLDER") or Path(os.environ.get("HUB_DATA_FOLDER") or ".hub") / "cache"
    build = commands.add_parser("build-minio", help="build MinIO's server from its Go module")
    build.add_argument("--cache", type=Path, default=Path(cache), help="where to keep it; HUB_CACHE_FOLDER says it too")
    commands.add_parser("lock-jars", help="resolve Kafka's jars with jgo and write kafka-jars.lock anew")
    arguments = parser.parse_args()
    if arguments.command == "build-minio":
        return minio_build.main(arguments.cache)
    jars.write_lock()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
