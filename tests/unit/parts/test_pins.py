"""What the parts are made of is pinned, and what is set is checked."""

import socket
from pathlib import Path

import pytest
from hub_parts import JarRefused, PartsSettings, jars, minio_build, ports
from hub_parts.errors import StartAborted, log_tail
from pydantic import ValidationError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HUB_PARTS_S3", "HUB_DURABILITY", "HUB_S3_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def test_the_lock_file_names_each_jar_once_and_kafka_with_its_logging() -> None:
    locked = jars.read_lock()
    names = [(jar.group, jar.artifact) for jar in locked]
    assert len(set(names)) == len(names)
    versions = {jar.artifact: jar.version for jar in locked}
    assert {version for name, version in versions.items() if name.startswith("kafka")} == {"4.3.1"}
    # slf4j 1.7 loads this binding only; with the one for slf4j 2 the broker would be silent.
    assert versions["slf4j-api"].startswith("1.7.")
    assert versions["log4j-slf4j-impl"] == versions["log4j-core"]


def test_the_lock_file_names_no_address() -> None:
    assert "://" not in jars.LOCK.read_text()


@pytest.mark.parametrize("line", ["org.x:y:1", "org.x:y abc", "org.x:y:1 abc", f"org.x:y:1:2 {'0' * 64}"])
def test_a_broken_line_of_the_lock_file_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.lock"
    path.write_text(line)
    with pytest.raises(JarRefused, match=r"a\.lock, line 1"):
        jars.read_lock(path)


def test_a_jar_stands_where_maven_repositories_keep_it() -> None:
    jar = jars.Jar("org.apache.kafka", "kafka_2.13", "4.3.1", "0" * 64)
    assert jar.path == "org/apache/kafka/kafka_2.13/4.3.1/kafka_2.13-4.3.1.jar"


def test_minio_is_pinned_with_its_digest() -> None:
    sums = (minio_build.MODULE_FOLDER / "go.sum").read_text()
    assert f"{minio_build.MODULE} {minio_build.version()} h1:" in sums
    assert minio_build.version() in minio_build.binary(Path("cache")).name


def test_power_means_minio_and_refuses_seaweedfs() -> None:
    assert PartsSettings().store == "seaweedfs"
    assert PartsSettings(parts_s3="minio").store == "minio"
    assert PartsSettings(durability="power").store == "minio"
    with pytest.raises(ValidationError, match="SeaweedFS loses acknowledged objects"):
        PartsSettings(durability="power", parts_s3="seaweedfs")


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HUB_PARTS_S3", "HUB_DURABILITY", "HUB_S3_ENDPOINT", "HUB_KAFKA_PORT", "HUB_CACHE_FOLDER"):
        monkeypatch.setenv(name, "")
    assert PartsSettings() == PartsSettings(parts_s3=None)
    assert PartsSettings().cache_folder is None


@pytest.mark.parametrize("settings", [{"parts_s3": "ceph"}, {"durability": "some"}, {"kafka_port": 0}, {"kafka_port": 70000}])
def test_nonsense_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PartsSettings.model_validate(settings)


def test_ports_stay_from_run_to_run_and_a_taken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    first = ports.choose_ports(path, {"a": None, "b": None})
    assert ports.choose_ports(path, {"a": None, "b": None}) == first
    assert all(ports.FIRST <= port <= ports.LAST for port in first.values())
    configured = ports.free_port()
    assert ports.choose_ports(path, {"a": configured})["a"] == configured
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StartAborted, match="is taken, but a is to listen there"):
            ports.choose_ports(path, {"a": taken.getsockname()[1]})


def test_an_error_shows_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert "no log" in log_tail(log)
    log.write_text("\n".join(f"line {number}" for number in range(100)))
    assert "line 99" in log_tail(log)
    assert "line 80" not in log_tail(log)
