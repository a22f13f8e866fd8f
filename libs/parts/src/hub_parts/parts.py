"""Kafka, S3 and PostgreSQL together: started in parallel, or used where they exist."""

import json
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hub_parts.access import apply_rules, rules
from hub_parts.credentials import ADMIN, IDENTITIES, Credentials, router_identity
from hub_parts.files import write_private
from hub_parts.kafka import Kafka, client_config
from hub_parts.minio_server import MinioServer
from hub_parts.ports import choose_ports
from hub_parts.postgres import Postgres
from hub_parts.s3 import require_buckets
from hub_parts.seaweedfs import PORTS as SEAWEEDFS_PORTS
from hub_parts.seaweedfs import SeaweedFS
from hub_parts.settings import PartsSettings
from hub_parts.supervisor import Program, Supervisor

ALL = frozenset({"kafka", "s3", "database"})


class Parts:
    """The running parts of one data folder.

    `Parts.start` gives them healthy; leaving the `with` block stops them and leaves nothing behind but the data folder.
    """

    def __init__(self, data_folder: Path, settings: PartsSettings, *, only: Collection[str] = ALL, open_kafka: bool = False) -> None:
        self.data_folder = data_folder.absolute()
        self.settings = settings
        self.only = frozenset(only)
        self.supervisor = Supervisor(self.data_folder)
        self.kafka_bootstrap_servers = ""
        """`host:port` of the broker."""
        self.s3_endpoint = ""
        """The store's URL."""
        self.database_url = ""
        """The administrator's address of the database; the services' stand in `credentials`."""
        self.credentials: dict[str, dict[str, Any]] = {"s3": {}, "database": {}, "kafka": {}}
        """Part to identity to what it needs to connect; the same as in credentials.json."""
        self.programs: list[str] = []
        """The supervisor's names of the parts that were started here."""
        self.start_seconds: dict[str, float] = {}
        """How long each of them took until it was healthy; they start together."""
        self._open_kafka = open_kafka

    @classmethod
    def start(
        cls, data_folder: Path, settings: PartsSettings | None = None, *, only: Collection[str] = ALL, open_kafka: bool = False
    ) -> Self:
        """Start the parts in this folder, in parallel, and wait until each is healthy.

        Args:
            data_folder: Everything is kept here, and nothing elsewhere.
            settings: Those of the environment when None.
            only: Which of `kafka`, `s3` and `database` are wanted.
            open_kafka: A broker that asks for no password: for tests of libraries, never for the hub.

        Raises:
            AlreadyRunning: Another process runs this folder.
            JarRefused: A jar of Kafka is not that of the lock file.
            StartAborted: A part did not come up; what had started was stopped again.
        """
        parts = cls(data_folder, settings or PartsSettings(), only=only, open_kafka=open_kafka)
        try:
            parts._start()
        except BaseException:
            parts.stop()
            raise
        return parts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the services and then the parts; may be called twice."""
        self.supervisor.stop()

    @property
    def credentials_file(self) -> Path:
        """Names and passwords, readable by its owner alone."""
        return self.data_folder / "credentials.json"

    def environment(self, identity: str) -> dict[str, str]:
        """The HUB_ variables with which a service of this identity reaches the parts."""
        found = {}
        if self.kafka_bootstrap_servers:
            found["HUB_KAFKA_BOOTSTRAP_SERVERS"] = self.kafka_bootstrap_servers
            user = self.credentials["kafka"].get(identity)
            if user is not None:
                found |= {"HUB_KAFKA_USERNAME": user["username"], "HUB_KAFKA_PASSWORD": user["password"]}
        if self.s3_endpoint:
            keys = self.credentials["s3"][identity]
            found |= {"HUB_S3_ENDPOINT": self.s3_endpoint, "HUB_S3_ACCESS_KEY": keys["access_key"], "HUB_S3_SECRET_KEY": keys["secret_key"]}
        if identity in self.credentials["database"]:
            found["HUB_DATABASE_URL"] = self.credentials["database"][identity]
        return found

    def kafka_config(self, identity: str = ADMIN) -> dict[str, Any]:
        """Librdkafka's settings for connecting as this identity."""
        return client_config(self.kafka_bootstrap_servers, self.credentials["kafka"].get(identity))

    def _start(self) -> None:
        self.supervisor.start()
        secrets = Credentials.load_or_make(self.data_folder / "run" / "secrets.json", self.settings.routers)
        starts: list[Callable[[], None]] = []
        if "kafka" in self.only:
            starts.append(self._kafka(secrets))
        if "s3" in self.only:
            starts.append(self._s3(secrets))
        if "database" in self.only:
            starts.append(self._database(secrets))
        with ThreadPoolExecutor(max(1, len(starts))) as pool:
            running = [pool.submit(start) for start in starts]
            wait(running, return_when=FIRST_EXCEPTION)
            for one in running:
                if one.done():
                    one.result()
        write_private(self.credentials_file, json.dumps(self.credentials, indent=1))

    def _run(self, prepare: Callable[[], Program]) -> None:
        begin = time.monotonic()
        program = prepare()
        self.programs.append(program.name)
        self.supervisor.add(program)
        self.supervisor.wait_healthy([program.name], timeout_seconds=120)
        self.start_seconds[program.name] = time.monotonic() - begin

    def _kafka(self, secrets: Credentials) -> Callable[[], None]:
        settings = self.settings
        if settings.kafka_bootstrap_servers:
            self.kafka_bootstrap_servers = settings.kafka_bootstrap_servers
            if settings.kafka_username and settings.kafka_password:
                user = {"username": settings.kafka_username, "password": settings.kafka_password.get_secret_value()}
                self.credentials["kafka"] = dict.fromkeys((*IDENTITIES, *map(router_identity, settings.routers)), user)
            return lambda: None
        ports = self._ports({"kafka": settings.kafka_port, "kafka-controller": None})
        kafka = Kafka(
            folder=self.data_folder / "kafka",
            cache=self._cache,
            logs=self.supervisor.logs,
            temporary=self.supervisor.temporary,
            port=ports["kafka"],
            controller_port=ports["kafka-controller"],
            credentials=None if self._open_kafka else secrets,
            flush_every_record=settings.durability == "power",
            heap_megabytes=settings.kafka_heap_megabytes,
        )
        self.kafka_bootstrap_servers = kafka.bootstrap_servers
        if not self._open_kafka:
            self.credentials["kafka"] = {name: dict(user) for name, user in secrets.kafka.items()}

        def start() -> None:
            self._run(kafka.prepare)
            if not self._open_kafka:
                apply_rules(kafka.client_config(), rules(routers=settings.routers))

        return start

    def _s3(self, secrets: Credentials) -> Callable[[], None]:
        settings = self.settings
        if settings.s3_endpoint:
            secret = settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else ""
            keys = {"access_key": settings.s3_access_key or "", "secret_key": secret}
            endpoint = self.s3_endpoint = settings.s3_endpoint
            self.credentials["s3"] = dict.fromkeys((*IDENTITIES, *map(router_identity, settings.routers)), keys)
            return lambda: require_buckets(endpoint, keys)
        self.credentials["s3"] = {name: dict(keys) for name, keys in secrets.s3.items()}
        if settings.store == "minio":
            return self._minio(secrets)
        ports = self._ports({name: settings.s3_port if name == "s3" else None for name in SEAWEEDFS_PORTS})
        folder = self.data_folder / "seaweedfs"
        store = SeaweedFS(folder=folder, logs=self.supervisor.logs, temporary=self.supervisor.temporary, ports=ports, credentials=secrets)
        self.s3_endpoint = store.endpoint
        return lambda: self._run(store.prepare)

    def _minio(self, secrets: Credentials) -> Callable[[], None]:
        store = MinioServer(
            folder=self.data_folder / "minio",
            cache=self._cache,
            port=self._ports({"s3": self.settings.s3_port})["s3"],
            credentials=secrets,
            flush_every_object=self.settings.durability == "power",
        )
        self.s3_endpoint = store.endpoint

        def start() -> None:
            self._run(store.prepare)
            store.make_identities()

        return start

    def _database(self, secrets: Credentials) -> Callable[[], None]:
        settings = self.settings
        if settings.database_url:
            self.database_url = settings.database_url
            self.credentials["database"] = dict.fromkeys(IDENTITIES, settings.database_url)
            return lambda: None
        database = Postgres(
            folder=self.data_folder / "postgres",
            logs=self.supervisor.logs,
            temporary=self.supervisor.temporary,
            port=self._ports({"postgres": settings.postgres_port})["postgres"],
            credentials=secrets,
        )
        self.database_url = database.url(ADMIN)
        self.credentials["database"] = {name: database.url(name) for name in secrets.database}
        return lambda: self._run(database.prepare)

    @property
    def _cache(self) -> Path:
        return (self.settings.cache_folder or self.data_folder / "cache").absolute()

    def _ports(self, wanted: Mapping[str, int | None]) -> dict[str, int]:
        return choose_ports(self.data_folder / "run" / "ports.json", dict(wanted))
