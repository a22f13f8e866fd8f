"""The real parts as the hub runs them: secured, in one folder, under the supervisor."""

import io
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import urllib3
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # documented, but not marked as exported
from hub_events import TOPICS
from hub_parts import JarRefused, Parts, StartAborted
from hub_parts.credentials import ADMIN, BUCKETS, IDENTITIES, S3_RIGHTS
from hub_parts.jars import provide, read_lock
from hub_parts.s3 import client
from minio.error import S3Error
from support.parts import S3, data_folder, settings, start_parts

STORE = settings().store
START_SECONDS: list[float] = []


@pytest.fixture(scope="module")
def machine_before() -> dict[str, object]:
    return machine()


@pytest.fixture(scope="module")
def parts(machine_before: dict[str, object]) -> Iterator[Parts]:
    begin = time.monotonic()
    with start_parts(secured_kafka=True) as one:
        START_SECONDS.append(time.monotonic() - begin)
        make_topics(one, TOPICS)
        yield one


def machine() -> dict[str, object]:
    """What a start as root could change on the machine."""
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    return {
        "users": Path("/etc/passwd").read_bytes(),
        "mode of home": oct(home.stat().st_mode),
        "in home": {path for path in (".jgo", ".m2", ".cache/jgo", ".minio", ".seaweedfs", ".pgpass") if (home / path).exists()},
    }


def eventually(condition: Callable[[], object], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def make_topics(parts: Parts, names: Any) -> None:
    admin = AdminClient(parts.kafka_config())
    for made in admin.create_topics([NewTopic(name, 1, 1) for name in names]).values():
        try:
            made.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise


def produce(config: dict[str, Any], topic: str, value: bytes, **own: Any) -> KafkaError | None:
    """Produce one record; what the broker said to it."""
    answers: list[KafkaError | None] = []
    producer = Producer({**config, "log_level": 0, "message.timeout.ms": 8000, **own})
    producer.produce(topic, value, on_delivery=lambda error, _: answers.append(error))
    producer.flush(15)
    return answers[0]


def consume(config: dict[str, Any], topic: str, group: str, *, join: bool = True) -> list[bytes] | KafkaError:
    """All records of a topic of one partition, or why the broker refuses; to `join` the group takes some seconds."""
    consumer = Consumer({**config, "log_level": 0, "group.id": group, "auto.offset.reset": "earliest", "enable.partition.eof": True})
    if join:
        consumer.subscribe([topic])
    else:
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    values: list[bytes] = []
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            message = consumer.poll(1)
            if message is None:
                continue
            error = message.error()
            if error is None:
                values.append(message.value() or b"")
            elif error.code() == KafkaError._PARTITION_EOF:
                return values
            else:
                return error
        raise AssertionError("no answer")
    finally:
        consumer.close()


def put(parts: Parts, identity: str, bucket: str, name: str, value: bytes) -> None:
    store = client(parts.s3_endpoint, parts.credentials["s3"][identity])
    try:
        store.put_object(bucket, name, io.BytesIO(value), len(value))
    finally:
        store._http.clear()


def get(parts: Parts, identity: str, bucket: str, name: str) -> bytes:
    store = client(parts.s3_endpoint, parts.credentials["s3"][identity])
    try:
        answer = store.get_object(bucket, name)
        try:
            return bytes(answer.read())
        finally:
            answer.close()
    finally:
        store._http.clear()


def listing(parts: Parts, identity: str, bucket: str) -> list[str | None]:
    store = client(parts.s3_endpoint, parts.credentials["s3"][identity])
    try:
        return [one.object_name for one in store.list_objects(bucket, recursive=True)]
    finally:
        store._http.clear()


def allowed(act: Callable[[], object]) -> bool:
    try:
        act()
    except S3Error as error:
        if error.code != "AccessDenied":
            raise
        return False
    return True


def pids_of(parts: Parts) -> list[psutil.Process]:
    daemon = psutil.Process(parts.supervisor.daemon_pid)
    return [daemon, *daemon.children(recursive=True)]


def test_they_start_together(parts: Parts) -> None:
    assert set(parts.start_seconds) == {"kafka", STORE, "postgres"} == set(parts.supervisor.pids())
    assert START_SECONDS[0] < sum(parts.start_seconds.values())


def test_they_listen_on_loopback_only(parts: Parts) -> None:
    listening = {one.laddr.ip for process in pids_of(parts) for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert listening


def test_every_socket_that_they_make_outside_is_known_for_deletion(parts: Parts) -> None:
    known = {path for name in parts.programs for path in parts.supervisor._programs[name].leftovers}
    assert sockets_outside(parts.data_folder) <= known


def test_their_logs_are_files(parts: Parts) -> None:
    for name in parts.programs:
        assert parts.supervisor.log(name).parent == parts.data_folder / "logs"
        assert parts.supervisor.log(name).stat().st_size > 0


def test_passwords_are_for_the_owner_alone(parts: Parts) -> None:
    assert parts.credentials_file.stat().st_mode & 0o777 == 0o600
    written = json.loads(parts.credentials_file.read_text())
    assert written == parts.credentials
    assert set(written["s3"]) == set(written["kafka"]) == set(IDENTITIES)
    secrets = [keys["secret_key"] for keys in written["s3"].values()] + [user["password"] for user in written["kafka"].values()]
    assert len(set(secrets)) == 2 * len(IDENTITIES)
    for log in parts.supervisor.logs.iterdir():
        assert not any(secret in log.read_text(errors="replace") for secret in secrets), log
    for process in pids_of(parts):
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets)


@pytest.mark.parametrize("identity", IDENTITIES)
def test_an_identity_has_its_rights_to_each_bucket_and_no_others(parts: Parts, identity: str) -> None:
    found = {}
    for bucket in BUCKETS:
        put(parts, ADMIN, bucket, "there", b"x")
        attempts: dict[str, Callable[[], object]] = {
            "r": partial(get, parts, identity, bucket, "there"),
            "w": partial(put, parts, identity, bucket, f"by-{identity}", b"x"),
            "l": partial(listing, parts, identity, bucket),
        }
        rights = "".join(right for right, attempt in attempts.items() if allowed(attempt))
        if rights:
            found[bucket] = rights
    assert found == S3_RIGHTS[identity]


def test_the_store_refuses_who_has_no_or_wrong_credentials(parts: Parts) -> None:
    keys = parts.credentials["s3"]["receiver"]
    for wrong in ({**keys, "secret_key": "wrong-secret"}, {"access_key": "nobody", "secret_key": "wrong-secret"}):
        store = client(parts.s3_endpoint, wrong)
        with pytest.raises(S3Error, match=r"SignatureDoesNotMatch|InvalidAccessKeyId"):
            store.get_object("identifiable", "there")
        store._http.clear()
    with urllib3.PoolManager() as pool:
        answer = pool.request("GET", f"{parts.s3_endpoint}/identifiable/there", retries=False)
    assert answer.status == 403


def test_the_store_gives_nothing_to_who_goes_around_its_gateway(parts: Parts) -> None:
    put(parts, ADMIN, "identifiable", "behind", b"a secret" * 1000)
    if STORE == "minio":
        server = psutil.Process(parts.supervisor.pid("minio"))
        ports = {one.laddr.port for one in server.net_connections("inet") if one.status == psutil.CONN_LISTEN}
        assert ports == {int(parts.s3_endpoint.rsplit(":", 1)[1])}, "there is no other way"
        return
    ports = json.loads((parts.data_folder / "run" / "ports.json").read_text())
    with urllib3.PoolManager() as pool:
        for name in ("filer", "volume"):
            for path in ("/buckets/identifiable/behind", "/1,01", "/buckets/identifiable/?pretty=y"):
                answer = pool.request("GET", f"http://127.0.0.1:{ports[name]}{path}", retries=False, timeout=5)
                assert answer.status in {400, 401, 403, 404}, (name, path)
                assert b"secret" not in answer.data
        answer = pool.request("PUT", f"http://127.0.0.1:{ports['filer']}/buckets/identifiable/planted", body=b"x", retries=False, timeout=5)
        assert answer.status in {401, 403}
    assert "planted" not in listing(parts, ADMIN, "identifiable")


def test_the_broker_refuses_who_has_no_or_wrong_credentials(parts: Parts) -> None:
    without = {"bootstrap.servers": parts.kafka_bootstrap_servers}
    for config in (without, {**parts.kafka_config("receiver"), "sasl.password": "wrong"}):
        with pytest.raises(KafkaException):
            AdminClient({**config, "log_level": 0}).list_topics(timeout=3)


def test_a_service_may_write_and_read_what_the_registry_says(parts: Parts) -> None:
    received, deidentified = "identifiable.instance.received", "research.study.deidentified"
    assert produce(parts.kafka_config("receiver"), received, b"1", **{"enable.idempotence": True}) is None
    assert consume(parts.kafka_config("assembler"), received, "ingest.assembler") == [b"1"]
    assert consume(parts.kafka_config("console"), received, "console.trace", join=False) == [b"1"]
    refused = produce(parts.kafka_config("receiver"), deidentified, b"1")
    assert refused is not None
    assert refused.code() in {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._MSG_TIMED_OUT,
    }
    producer = Producer({**parts.kafka_config("deidentification"), "transactional.id": "deidentification-0"})
    producer.init_transactions(15)
    producer.begin_transaction()
    producer.produce(deidentified, b"2")
    producer.commit_transaction(15)
    foreign = Producer({**parts.kafka_config("indexing"), "transactional.id": "deidentification-0", "log_level": 0})
    with pytest.raises(KafkaException, match=r"TRANSACTIONAL_ID_AUTHORIZATION_FAILED|Transactional Id authorization failed"):
        foreign.init_transactions(15)
    answer = consume(parts.kafka_config("indexing"), deidentified, "deidentification")
    assert isinstance(answer, KafkaError)
    assert answer.code() == KafkaError.GROUP_AUTHORIZATION_FAILED


@pytest.mark.parametrize("topic", [name for name in TOPICS if name.startswith("identifiable.")])
def test_a_consumer_of_datasets_never_reads_what_identifies_people(parts: Parts, topic: str) -> None:
    answer = consume(parts.kafka_config("validation-consumer"), topic, "validation-consumer")
    assert isinstance(answer, KafkaError)
    assert answer.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_the_broker_makes_no_topic_by_itself(parts: Parts) -> None:
    assert produce(parts.kafka_config(), "misspelt.topic", b"1", **{"message.timeout.ms": 3000}) is not None


def test_database_roles_have_their_rights_and_no_others(parts: Parts) -> None:
    urls: dict[str, str] = parts.credentials["database"]
    with psycopg.connect(urls["indexing"], autocommit=True) as connection:
        connection.execute("CREATE TABLE research_index.probe AS SELECT 1 AS one")
        connection.execute("CREATE VIEW research_index.probe_view AS SELECT one FROM research_index.probe")
        connection.execute("GRANT SELECT ON research_index.probe_view TO export")
    with psycopg.connect(urls["console"], autocommit=True) as connection:
        assert connection.execute("SELECT one FROM research_index.probe").fetchone() == (1,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM research_index.probe")
    with psycopg.connect(urls["export"], autocommit=True) as connection:
        assert connection.execute("SELECT one FROM research_index.probe_view").fetchone() == (1,)
        for forbidden in (
            "SELECT one FROM research_index.probe",
            "CREATE TABLE research_index.mine (x int)",
            "CREATE TABLE public.mine (x int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)
    wrong = urls["export"].replace(urls["export"].split(":")[2].split("@")[0], "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong, connect_timeout=5)


@pytest.mark.parametrize("kind", ["kafka", "store", "postgres"])
def test_a_crashed_part_comes_back_with_what_it_acknowledged(parts: Parts, kind: str) -> None:
    name = STORE if kind == "store" else kind
    value = os.urandom(16).hex().encode()
    topic = "research.dataset.requested"
    if kind == "kafka":
        assert produce(parts.kafka_config(), topic, value) is None
    elif kind == "store":
        put(parts, ADMIN, "research", "before-the-crash", value)
    else:
        with psycopg.connect(parts.database_url) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS crash (value bytea)")
            connection.execute("INSERT INTO crash VALUES (%s)", (value,))
    others = {other: pid for other, pid in parts.supervisor.pids().items() if other != name}
    dead = parts.supervisor.pid(name)
    parts.supervisor.signal(name, signal.SIGKILL)
    eventually(lambda: parts.supervisor.pid(name) not in {dead, None} and parts.supervisor.healthy(name))
    assert {other: pid for other, pid in parts.supervisor.pids().items() if other != name} == others
    if kind == "kafka":
        records = consume(parts.kafka_config(), topic, "crash", join=False)
        assert isinstance(records, list)
        assert value in records
    elif kind == "store":
        assert get(parts, "indexing", "research", "before-the-crash") == value
    else:
        with psycopg.connect(parts.database_url) as connection:
            assert (value,) in connection.execute("SELECT value FROM crash").fetchall()


def test_stop_leaves_nothing_and_a_second_start_finds_all(machine_before: dict[str, object]) -> None:
    """Stop, then SIGKILL of everything, each with a start over what is there."""
    with data_folder() as folder:
        with Parts.start(folder, settings()) as first:
            credentials = first.credentials
            make_topics(first, ["kept"])
            assert produce(first.kafka_config(), "kept", b"1") is None
            put(first, ADMIN, "research", "kept", b"1")
            with psycopg.connect(first.database_url) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
            processes = pids_of(first)
            assert len(processes) >= 4
        assert_nothing_left(folder, processes)
        assert machine() == machine_before

        parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True)
        with parent:
            assert parent.stdout is not None
            daemon = psutil.Process(int(parent.stdout.readline()))
            processes = [daemon, *daemon.children(recursive=True)]
            parent.kill()
            daemon.kill()
        eventually(lambda: not any(lives(process) for process in processes), 10)
        # By now another process may have the number of the killed server.
        data = folder / "postgres" / "data"
        (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n{int(time.time())}\n5432\n\n127.0.0.1\n")

        with Parts.start(folder, settings()) as again:
            assert again.credentials == credentials, "ports and passwords stay"
            assert consume(again.kafka_config(), "kept", "kept", join=False) == [b"1"]
            assert get(again, ADMIN, "research", "kept") == b"1"
            with psycopg.connect(again.database_url) as connection:
                assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
            processes = pids_of(again)
        assert_nothing_left(folder, processes)


PARENT = """
import sys, time
from pathlib import Path
from hub_parts import Parts
from support.parts import settings
with Parts.start(Path(sys.argv[1]), settings()) as parts:
    print(parts.supervisor.daemon_pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _helpers_for_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


def test_sigterm_leaves_nothing() -> None:
    with data_folder() as folder:
        parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        with parent:
            assert parent.stdout is not None
            daemon = psutil.Process(int(parent.stdout.readline()))
            processes = [daemon, *daemon.children(recursive=True)]
            parent.terminate()
        eventually(lambda: not any(lives(process) for process in processes), 30)
        assert_nothing_left(folder, processes)


def test_ctrl_c_while_they_start_leaves_nothing() -> None:
    with data_folder() as folder:
        parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with parent:
            eventually((folder / "logs" / "postgres.log").exists)
            daemon = psutil.Process(int((folder / "run" / "supervisord.pid").read_text()))
            processes = [daemon, *daemon.children(recursive=True)]
            parent.send_signal(signal.SIGINT)
        eventually(lambda: not any(lives(process) for process in processes), 30)
        assert_nothing_left(folder, processes)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def sockets_outside(folder: Path) -> set[Path]:
    """SeaweedFS's, which carry a port in their name."""
    ports = json.loads((folder / "run" / "ports.json").read_text()).values()
    sockets = [path for where in ("/tmp", "/run", "/var/tmp") for path in Path(where).glob("*") if path.is_socket()]
    return {path for path in sockets if any(f"-{port}." in path.name for port in ports)}


def assert_nothing_left(folder: Path, processes: list[psutil.Process]) -> None:
    assert not [process for process in processes if lives(process)]
    mark = f"HUB_RUN={(folder / 'run' / 'id').read_text()}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            assert mark not in environment.read_bytes().split(b"\0"), environment
        except OSError:
            continue
    pids = {process.pid for process in processes}
    assert not sockets_outside(folder)
    assert not {int(path.name) for path in Path("/tmp").glob("hsperfdata_*/[0-9]*")} & pids
    segments = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    assert not [one for one in segments if int(one[4]) in pids], "shared memory"
    assert not [line for line in Path("/proc/net/unix").read_text().splitlines() if str(folder) in line]


def test_a_tampered_jar_is_refused_before_anything_of_it_runs() -> None:
    jar = read_lock()[0]
    with start_parts("database") as other, data_folder() as folder, data_folder() as cache:
        shared = settings().cache_folder
        assert shared is not None
        provide(read_lock(), shared)
        shutil.copytree(shared / "jars", cache / "jars")
        with (cache / "jars" / jar.file_name).open("ab") as file:
            file.write(b"x")
        with pytest.raises(
            JarRefused, match=f"{jar.file_name} is not the .* its SHA-256 is .* it should be {jar.sha256}.*Delete that file"
        ):
            Parts.start(folder, settings(cache_folder=cache), only={"kafka"})
        assert not (folder / "kafka" / "data").exists()
        assert other.supervisor.healthy("postgres")


def test_one_part_that_cannot_start_stops_the_others() -> None:
    with start_parts("database") as taken, data_folder() as folder:
        port = int(taken.database_url.rsplit(":", 1)[1].split("/")[0])
        with pytest.raises(StartAborted, match=f"port {port} of 127.0.0.1 is taken, but postgres is to listen there"):
            Parts.start(folder, settings(postgres_port=port), only={"s3", "database"})
        (folder / "postgres").mkdir(exist_ok=True)
        (folder / "postgres" / "data").write_text("not a folder")
        with pytest.raises(StartAborted, match="PostgreSQL could not make"):
            Parts.start(folder, settings(), only={"s3", "database"})
        assert_nothing_left(folder, [])


def test_parts_that_exist_are_used_and_none_is_started(kafka: str, s3: S3, database: str) -> None:
    existing = settings(
        kafka_bootstrap_servers=kafka,
        s3_endpoint=s3.endpoint,
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        database_url=database,
    )
    with data_folder() as folder, Parts.start(folder, existing) as parts:
        assert parts.programs == []
        assert parts.supervisor.pids() == {}
        assert (parts.kafka_bootstrap_servers, parts.s3_endpoint, parts.database_url) == (kafka, s3.endpoint, database)
        assert parts.environment("indexing") == {
            "HUB_KAFKA_BOOTSTRAP_SERVERS": kafka,
            "HUB_S3_ENDPOINT": s3.endpoint,
            "HUB_S3_ACCESS_KEY": s3.access_key,
            "HUB_S3_SECRET_KEY": s3.secret_key,
            "HUB_DATABASE_URL": database,
        }
        put(parts, "receiver", "identifiable", "by-an-existing-store", b"x")
    AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=5)


def test_an_existing_part_that_is_not_there_is_named() -> None:
    absent = settings(s3_endpoint="http://127.0.0.1:9", s3_access_key="a", s3_secret_key="b" * 8)
    with data_folder() as folder, pytest.raises(StartAborted, match=r"HUB_S3_ENDPOINT=http://127\.0\.0\.1:9 has no usable bucket"):
        Parts.start(folder, absent, only={"s3"})


def test_minio_that_was_not_built_is_named_with_the_command_that_builds_it() -> None:
    with data_folder() as folder, pytest.raises(StartAborted, match="`make minio` builds it"):
        Parts.start(folder, settings(parts_s3="minio", cache_folder=folder / "cache"), only={"s3"})
