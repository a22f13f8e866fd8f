"""What stands between the supervisor and a program: `python -I -S tether.py PROGRAM.json`.

It ties the program to its parent's life, gives it its own environment, and becomes it. It imports nothing of the project, so that it costs 15 ms.
"""

import ctypes
import errno
import json
import os
import signal
import sys
from typing import NoReturn

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
NAMESPACE_REFUSED = 78
"""Exit status when the machine does not let us make a user namespace (EX_CONFIG of sysexits.h)."""

NAMESPACE_TEXT = (
    "PostgreSQL does not run as root, and this machine does not let root make a user namespace ({reason}). "
    "Start the hub as an ordinary user, or allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone), "
    "or name an existing database in HUB_DATABASE_URL."
)


def leave_root(nobody: int = 65534) -> None:
    """Go on as `nobody` in a user namespace that maps it to root: no OS user is made, and files in the data folder stay root's.

    Raises:
        OSError: User namespaces are forbidden here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{nobody} {user} 1"), ("gid_map", f"{nobody} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib would double the start time
            file.write(text)


def die_with_parent(number: int, parent: int) -> None:
    """Ask the kernel for signal `number` when the parent dies; end now when it is dead already.

    Raises:
        OSError: The kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> NoReturn:
    """Become the program that the file names."""
    parent = os.getppid()
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 - pathlib would double the start time
        program = json.load(file)
    if program["leave_root"] and os.getuid() == 0:
        try:
            leave_root()
        except OSError as error:
            sys.stderr.write(NAMESPACE_TEXT.format(reason=errno.errorcode.get(error.errno or 0, str(error))) + "\n")
            raise SystemExit(NAMESPACE_REFUSED) from None
    os.umask(0o077)
    os.chdir(program["folder"])
    # Last, because the kernel forgets it when credentials change.
    die_with_parent(program["parent_death_signal"], parent)
    os.execvpe(program["command"][0], program["command"], program["environment"])  # noqa: S606 - becoming the program is this file's purpose


if __name__ == "__main__":
    main()
