"""What can go wrong with the parts, named by what happens next."""

from pathlib import Path


class StartAborted(RuntimeError):
    """The start was given up and what had started was stopped again; the text says what was wrong and what to do."""


class JarRefused(StartAborted):
    """A jar is not the one that the lock file names: nothing of it was run."""


class AlreadyRunning(StartAborted):
    """Another process runs the parts in this data folder; it goes on undisturbed."""


class ProgramUnknown(KeyError):
    """No program of this name was given to the supervisor."""


def log_tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log file, for an error's text; says so when there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return f"(it wrote no log: {path})"
    return "\n".join(text.splitlines()[-lines:]) + f"\n(whole log: {path})"
