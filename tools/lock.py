"""Lock the dependencies anew: `make lock`. Then take the index's addresses out of uv.lock, because which index serves a site is the site's matter."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import setup

LOCK = Path(__file__).resolve().parents[1] / "uv.lock"


def without_addresses(text: str) -> str:
    """The lock with neutral addresses; names, versions, sizes and SHA-256 digests stay."""
    text = re.sub(r'(registry = )"[^"]*"', r'\1"https://index.invalid/simple"', text)
    return re.sub(r'(url = )"https?://[^/"]*/[^"]*/([^/"]+)"', r'\1"https://files.index.invalid/\2"', text)


def main() -> int:
    """Lock and clean; with --check say whether the lock fits the pyproject files and holds no address."""
    if "--check" in sys.argv[1:]:
        if without_addresses(LOCK.read_text(encoding="utf-8")) != LOCK.read_text(encoding="utf-8"):
            print("uv.lock names an index: run `make lock` and commit the result.", file=sys.stderr)
            return 1
        return 0
    LOCK.unlink(missing_ok=True) if "--upgrade" in sys.argv[1:] else None
    setup.run([setup.find_uv(), "lock"])
    LOCK.write_text(without_addresses(LOCK.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
