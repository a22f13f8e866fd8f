"""Coverage-guided fuzzing of the receiver's fast path: `make fuzz FUZZ_SECONDS=300`. Its own arguments are libFuzzer's.

A finding ends it with the assertion that failed and writes the input to a file, which as the only argument repeats it.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with atheris.instrument_imports(include=["hub_ingest.conversation", "hub_ingest.dimse", "hub_ingest.arrival", "support.conversation_fuzz"]):
    from support.conversation_fuzz import one_input


def _look(choices: bytes) -> None:
    one_input(choices)


def main() -> None:
    """Fuzz until libFuzzer's bounds."""
    atheris.Setup(sys.argv, _look)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
