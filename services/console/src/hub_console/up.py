"""Start the hub on one machine: parts, topics, keys, services; say where everything is; stop it all."""

import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from hub_dicom.trusts import Trusts
from hub_parts import Parts, PartsSettings, Program, StartAborted
from hub_parts.ports import choose_ports, free_port, is_free
from hub_runtime.keyring import KeyRing
from hub_runtime.topics import create_topics

from hub_console.running import ENDPOINTS

HOST = "127.0.0.1"
AE_TITLE = "REGIONALHUB"
BUCKETS = ("identifiable", "research", "datasets-training", "datasets-validation")
DEIDENTIFICATION_PURPOSES = ("subject", "uid", "date", "object", "source")
SPLIT_PURPOSES = ("split",)
DEMO_TRUSTS = """\
# Three trusts that do not exist, for looking at the hub on one machine. HUB_TRUSTS_FILE names a file of your own.
# Their quiet time is short so that a demo need not wait; a real trust's is minutes (the default is 300 s).
# A real one may also say what it does not want: modalities, test_patients, refuse_sop_classes and more, see services/ingest/README.md.
trusts:
  - name: northgate
    title: Northgate Hospitals (made up)
    ae_titles: [NORTHGATE]
    addresses: [127.0.0.1/32]
    quiet_seconds: 3
    assigning_authority: NORTHGATE
    national_number: {field: PatientID, issuer: NHS}
  - name: southmoor
    title: Southmoor General (made up)
    ae_titles: [SOUTHMOOR]
    addresses: [127.0.0.1/32]
    quiet_seconds: 3
    assigning_authority: SOUTHMOOR
    national_number: {field: OtherPatientIDsSequence, issuer: NHS}
  - name: eastvale
    title: Eastvale Infirmary (made up)
    ae_titles: [EASTVALE]
    addresses: [127.0.0.1/32]
    quiet_seconds: 3
    assigning_authority: EASTVALE
    national_number: {field: PatientID, issuer: NHS}
"""
KEYS_NOTE = """\
These keys were made by `hub up` on this machine, for the demo and for local use.
deidentification.json: whoever has it can tell which pseudonym is whose. split.json: decides who is in a training set.
In production they come from a secret store, by HUB_DEIDENTIFICATION_KEYS_FILE and HUB_SPLIT_KEYS_FILE, and never lie beside the data.
Delete them only together with all data: every pseudonym stands on them.
"""
_TRUST_READERS = frozenset({"receiver", "stow", "assembler", "closer", "commitment", "gate", "deidentification"})
_SEALERS = frozenset({"receiver", "stow", "assembler", "closer", "commitment", "gate"})
_READY_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Service:
    """One of the hub's services: its program and whose credentials it has."""

    name: str
    program: str
    identity: str
    workers: bool = True


SERVICES = (
    Service("receiver", "hub-receiver", "receiver"),
    Service("stow", "hub-stow", "stow"),
    Service("assembler", "hub-assembler", "assembler"),
    Service("closer", "hub-closer", "closer"),
    Service("commitment", "hub-commitment", "commitment"),
    Service("deidentification", "hub-deidentification", "deidentification"),
    Service("indexing", "hub-indexing", "indexing"),
    Service("indexing-api", "hub-indexing-api", "indexing", workers=False),
    Service("export", "hub-export", "export"),
)


GATE = Service("gate", "hub-gate", "gate")
"""Runs where a trust has a router of its own."""


class Up:
    """A hub that this process has started. Leaving the `with` block stops all of it."""

    def __init__(self, parts: Parts, say: Callable[[str], None]) -> None:
        self._parts = parts
        self._say = say
        self.endpoints: dict[str, Any] = {}
        self._services: tuple[Service, ...] = SERVICES

    @classmethod
    def start(cls, data_folder: Path, settings: PartsSettings, *, workers: int = 1, say: Callable[[str], None] = lambda _: None) -> Self:
        """Start everything and return when every service is ready. `say` gets a line for each step.

        Raises:
            hub_parts.AlreadyRunning: another process runs this folder.
            hub_parts.StartAborted: something did not come up; the text says what and why, and all that had started is stopped again.
        """
        data_folder = data_folder.absolute()
        store = settings.store if not settings.s3_endpoint else "S3"
        say(f"Starting Kafka, {store} and PostgreSQL in {data_folder}")
        began = time.monotonic()
        data_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        routers = [trust.name for trust in Trusts.load(trusts_path(data_folder, os.environ)).trusts if trust.router]
        settings = settings.model_copy(update={"parts_routers": ",".join(sorted({*settings.routers, *routers}))})
        parts = Parts.start(data_folder, settings)
        up = cls(parts, say)
        up._services = (*SERVICES, GATE) if routers else SERVICES
        try:
            (data_folder / ENDPOINTS).unlink(missing_ok=True)
            say(f"Parts are healthy after {time.monotonic() - began:.1f} s; starting {len(up._services)} services")
            up._start_services(workers)
        except BaseException:
            parts.stop()
            raise
        say(f"Every service is ready after {time.monotonic() - began:.1f} s")
        return up

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the services, then the parts; endpoints.json goes first, so that nobody finds a hub that is ending."""
        (self._parts.data_folder / ENDPOINTS).unlink(missing_ok=True)
        self._parts.stop()

    def watch(self, stopped: Callable[[float], bool]) -> None:
        """Keep endpoints.json true until `stopped`, which waits up to the given seconds, returns true: a restarted service has another pid.

        Raises:
            StartAborted: supervisord has died.
        """
        supervisor = self._parts.supervisor
        while not stopped(1.0):
            if supervisor.daemon_pid is None:
                raise StartAborted(f"the supervisor has ended by itself; its log: {supervisor.logs / 'supervisord.err'}")
            try:
                pids = supervisor.pids()
            except (OSError, HTTPException):
                continue
            changed = {name: pid for name, pid in pids.items() if pid is not None and pid != self._pid(name)}
            if changed:
                self._say(f"Started again after it had ended: {', '.join(sorted(changed))}")
                self._write_endpoints(pids)

    def _pid(self, name: str) -> int | None:
        known: dict[str, Any] = self.endpoints["services"].get(name) or self.endpoints["parts"].get(name) or {}
        return known.get("pid")

    def _start_services(self, workers: int) -> None:
        parts, folder = self._parts, self._parts.data_folder
        keys = make_keys(folder, os.environ)
        trusts_file = trusts_path(folder, os.environ)
        trusts = Trusts.load(trusts_file)
        tokens, token_files = make_tokens(folder, "qido", ["local"])
        stow_tokens, stow_token_files = make_tokens(folder, "stow", [trust.name for trust in trusts.trusts])
        seal = make_seal(folder, os.environ) if GATE in self._services else None
        wanted = {"receiver": _port("HUB_RECEIVER_PORT"), "stow": _port("HUB_STOW_PORT"), "qido": _port("HUB_QIDO_PORT")}
        ports = choose_ports(folder / "run" / "ports.json", wanted)
        health = {service.name: _run_of_ports(workers if service.workers else 1) for service in self._services}
        extra: dict[str, dict[str, str]] = {
            "receiver": {
                "HUB_RECEIVER_HOST": HOST,
                "HUB_RECEIVER_PORT": str(ports["receiver"]),
                "HUB_RECEIVER_AE_TITLE": os.environ.get("HUB_RECEIVER_AE_TITLE", AE_TITLE),
            },
            "stow": {"HUB_STOW_HOST": HOST, "HUB_STOW_PORT": str(ports["stow"]), "HUB_STOW_TOKENS_FILE": str(stow_tokens)},
            "deidentification": keys["deidentification"],
            "export": keys["split"],
            "indexing-api": {"HUB_QIDO_HOST": HOST, "HUB_QIDO_PORT": str(ports["qido"]), "HUB_QIDO_TOKENS_FILE": str(tokens)},
        }
        programs = []
        for service in self._services:
            environment = _settings_of(service, os.environ) | parts.environment(service.identity) | extra.get(service.name, {})
            environment |= {"HUB_DATA_FOLDER": str(folder), "HUB_HEALTH_PORT": str(health[service.name]), "PYTHONUNBUFFERED": "1"}
            if service.workers:
                environment["HUB_WORKERS"] = str(workers)
            if service.name in _TRUST_READERS:
                environment["HUB_TRUSTS_FILE"] = str(trusts_file)
            if seal is not None and service.name in _SEALERS:
                environment["HUB_SEAL_KEY"] = seal
            count = workers if service.workers else 1
            programs.append(
                Program(
                    name=service.name,
                    command=[str(Path(sys.executable).with_name(service.program))],
                    environment=environment,
                    health=_ready_check(health[service.name], count),
                )
            )
        missing = [program.command[0] for program in programs if not Path(program.command[0]).exists()]
        if missing:
            raise StartAborted(f"not installed: {', '.join(missing)}. Run `make setup` again")
        create_topics({**parts.kafka_config(), "log_level": 3})
        parts.supervisor.add(*programs)
        parts.supervisor.wait_healthy([program.name for program in programs], timeout_seconds=_READY_SECONDS)
        # A member that joins a group makes the others unready for a moment, so ready one after the other is not ready together.
        deadline = time.monotonic() + _READY_SECONDS
        while late := [program.name for program in programs if program.health is not None and not program.health()]:
            if time.monotonic() > deadline:
                raise StartAborted(f"not ready after {_READY_SECONDS} s: {', '.join(late)}. Their logs: {parts.supervisor.logs}")
            time.sleep(0.1)
        database = urlsplit(parts.database_url)
        store = parts.settings.store if not parts.settings.s3_endpoint else "external"
        self.endpoints = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "data_folder": str(folder),
            "durability": parts.settings.durability,
            "supervisor": {"pid": os.getpid(), "supervisord_pid": parts.supervisor.daemon_pid},
            "receiver": {"host": HOST, "port": ports["receiver"], "ae_title": extra["receiver"]["HUB_RECEIVER_AE_TITLE"]},
            "stow": {
                "host": HOST,
                "port": ports["stow"],
                "url": f"http://{HOST}:{ports['stow']}/dicom-web",
                "token_files": {trust: str(path) for trust, path in stow_token_files.items()},
            },
            "qido": {
                "host": HOST,
                "port": ports["qido"],
                "url": f"http://{HOST}:{ports['qido']}/dicom-web",
                "token_file": str(token_files["local"]),
            },
            "kafka": {"bootstrap_servers": parts.kafka_bootstrap_servers},
            "s3": {"endpoint": parts.s3_endpoint, "store": store, "buckets": list(BUCKETS)},
            "database": {"host": database.hostname, "port": database.port, "name": database.path.lstrip("/")},
            "credentials_file": str(parts.credentials_file),
            "trusts_file": str(trusts_file),
            "trusts": [
                {"name": trust.name, "title": trust.title, "ae_titles": list(trust.ae_titles), "quiet_seconds": trust.quiet_seconds}
                for trust in trusts.trusts
            ],
            "keys_files": {
                purpose: next((value for name, value in given.items() if name.endswith("_FILE")), None) for purpose, given in keys.items()
            },
            "logs": str(parts.supervisor.logs),
            "parts": {name: {"log": str(parts.supervisor.log(name))} for name in parts.programs},
            "services": {
                service.name: {
                    "health": f"http://{HOST}:{health[service.name]}",
                    "workers": workers if service.workers else 1,
                    "log": str(parts.supervisor.log(service.name)),
                }
                for service in self._services
            },
        }
        self._write_endpoints(parts.supervisor.pids())

    def _write_endpoints(self, pids: Mapping[str, int | None]) -> None:
        for group in ("parts", "services"):
            for name, entry in self.endpoints[group].items():
                entry["pid"] = pids.get(name)
        path = self._parts.data_folder / ENDPOINTS
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self.endpoints, indent=1), encoding="utf-8")
        new.replace(path)


def make_keys(folder: Path, environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """For deidentification and split, the HUB_ variable that gives the service its keys; made ones lie in `keys` of the data folder.

    Raises:
        StartAborted: a variable names a file that is not there.
    """
    given = {}
    for name, purposes in (("deidentification", DEIDENTIFICATION_PURPOSES), ("split", SPLIT_PURPOSES)):
        prefix = f"HUB_{name.upper()}_KEYS"
        if environment.get(prefix):
            given[name] = {prefix: environment[prefix]}
            continue
        path = Path(environment.get(f"{prefix}_FILE") or folder / "keys" / f"{name}.json").absolute()
        if not path.exists():
            if environment.get(f"{prefix}_FILE"):
                raise StartAborted(f"{prefix}_FILE names {path}, which does not exist: mend the name, or unset it to have keys made")
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            KeyRing.generate(purposes).save(path)
            (path.parent / "README.txt").write_text(KEYS_NOTE, encoding="utf-8")
        given[name] = {f"{prefix}_FILE": str(path)}
    return given


def trusts_path(folder: Path, environment: Mapping[str, str]) -> Path:
    """The file of trusts: HUB_TRUSTS_FILE, or the demo's three, written once into the data folder so that they can be edited."""
    if environment.get("HUB_TRUSTS_FILE"):
        return Path(environment["HUB_TRUSTS_FILE"]).absolute()
    path = folder / "trusts.yaml"
    if not path.exists():
        path.write_text(DEMO_TRUSTS, encoding="utf-8")
    return path


def make_tokens(folder: Path, service: str, owners: Sequence[str]) -> tuple[Path, dict[str, Path]]:
    """A bearer token for each owner, kept over restarts: the file of digests for the service, and the token's file for each of them."""
    keys = folder / "keys"
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {owner: keys / (f"{service}.token" if owner == "local" else f"{service}-{owner}.token") for owner in owners}
    digests = {}
    for owner, file in files.items():
        if not file.exists():
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
                new.write(secrets.token_urlsafe(32) + "\n")
        digests[owner] = hashlib.sha256(file.read_text(encoding="utf-8").strip().encode()).hexdigest()
    tokens = keys / f"{service}-tokens.json"
    tokens.write_text(json.dumps(digests), encoding="utf-8")
    tokens.chmod(0o600)
    return tokens, files


def make_seal(folder: Path, environment: Mapping[str, str]) -> str:
    """The key with which the hub seals its own events: HUB_SEAL_KEY, or one that is made once and kept in `keys` of the data folder."""
    if environment.get("HUB_SEAL_KEY"):
        return environment["HUB_SEAL_KEY"]
    path = folder / "keys" / "seal.key"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    return path.read_text(encoding="utf-8").strip()


def ready(port: int) -> bool:
    """Whether the service whose health is served at this port says that it is ready."""
    connection = HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _ready_check(first: int, count: int) -> Callable[[], bool]:
    return lambda: all(ready(port) for port in range(first, first + count))


def _run_of_ports(count: int) -> int:
    """The first of `count` neighbouring free ports: worker i serves its health at port + i."""
    while True:
        first = free_port()
        if all(is_free(port) for port in range(first, first + count)):
            return first


def _port(variable: str) -> int | None:
    value = os.environ.get(variable)
    if not value:
        return None
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise StartAborted(f"{variable} is {value!r}: it must be a port number")
    return int(value)


def _settings_of(service: Service, environment: Mapping[str, str]) -> dict[str, str]:
    """Settings that the operator gives all services or this one: never a secret, never where a part is."""
    own = f"HUB_{service.name.split('-')[0].upper()}_"
    shared = ("HUB_LOG_STRICT", "HUB_DRAIN_SECONDS", "HUB_SWEEP_SECONDS", "HUB_QIDO_MOST_RESULTS")
    kept = {name: value for name, value in environment.items() if name in shared or (name.startswith(own) and "_KEYS" not in name)}
    return {name: value for name, value in kept.items() if value}
