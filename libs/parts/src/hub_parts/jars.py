"""Kafka's jars: named by a lock file with SHA-256, fetched in parallel from the repositories that jgo is set to use."""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hub_parts.errors import JarRefused, StartAborted

KAFKA = "org.apache.kafka:kafka_2.13:4.3.1"
LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
"""slf4j 1.7 needs this binding (the -slf4j2- one is silent), in the version of Kafka's own log4j."""
LOCK = Path(__file__).with_name("kafka-jars.lock")


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock file."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Its name in the cache and in a repository."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def path(self) -> str:
        """Where a Maven repository keeps it."""
        return f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}/{self.file_name}"


def read_lock(path: Path = LOCK) -> list[Jar]:
    """The jars of the lock file.

    Raises:
        JarRefused: A line is not `group:artifact:version sha256`.
    """
    jars = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        name, _, digest = line.partition(" ")
        if name.count(":") != 2 or len(digest) != 64:
            raise JarRefused(
                f"{path.name}, line {number}: not `group:artifact:version sha256`: make it anew with `python -m hub_parts lock-jars`"
            )
        group, artifact, version = name.split(":")
        jars.append(Jar(group, artifact, version, digest))
    return jars


def provide(jars: Iterable[Jar], cache: Path) -> list[Path]:
    """The jars' files in the cache, each with the digest of the lock file; those not there are fetched.

    Raises:
        JarRefused: A cached or fetched file has another digest.
        StartAborted: No repository has one, or none is reachable.
    """
    jars = list(jars)
    folder = cache / "jars"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [jar for jar in jars if not (folder / jar.file_name).exists()]
    if missing:
        import truststore  # noqa: PLC0415 - only needed to fetch

        truststore.inject_into_ssl()  # the machine's certificate authorities count too: a hospital's network has one of its own
        repositories = remote_repositories()
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda jar: fetch(jar, folder, repositories), missing))
    for jar in jars:
        check(folder / jar.file_name, jar)
    return [folder / jar.file_name for jar in jars]


def remote_repositories() -> list[str]:
    """The addresses of the repositories that jgo's settings name on this machine, jgo's own default first."""
    # jgo takes half a second to import, and a start with a filled cache does not need it.
    from jgo.config import GlobalSettings  # noqa: PLC0415
    from jgo.maven import MavenContext  # noqa: PLC0415

    settings = GlobalSettings.load()
    # Named, so that nothing is looked for or put in the home folder.
    repositories = {**MavenContext(repo_cache=Path(os.devnull)).remote_repos, **settings.repositories}
    return [address.rstrip("/") for address in repositories.values()]


def fetch(jar: Jar, folder: Path, repositories: list[str]) -> None:
    """Fetch one jar into the folder; a reader sees it whole or not at all."""
    import requests  # noqa: PLC0415 - jgo's own client, with its proxies; only needed to fetch
    from jgo.util import http  # noqa: PLC0415

    problems = []
    for repository in repositories:
        try:
            answer = http.get(f"{repository}/{jar.path}", timeout=60)
            answer.raise_for_status()
        except requests.RequestException as error:
            problems.append(str(error))
            continue
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".fetch-", delete=False) as file:
            file.write(answer.content)
        try:
            check(Path(file.name), jar)
        except JarRefused:
            Path(file.name).unlink()
            raise
        Path(file.name).chmod(0o644)
        Path(file.name).replace(folder / jar.file_name)
        return
    raise StartAborted(
        f"{jar.file_name}, which Kafka needs, could not be fetched: {'; '.join(problems)}. Check the network, or name a reachable Maven repository "
        "in jgo's settings (its manual: [repositories] in jgo.conf), or use an existing Kafka with HUB_KAFKA_BOOTSTRAP_SERVERS."
    )


def check(path: Path, jar: Jar) -> None:
    """Compare a file with the lock file.

    Raises:
        JarRefused: It is another file.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != jar.sha256:
        raise JarRefused(
            f"{path} is not the {jar.file_name} that kafka-jars.lock names: its SHA-256 is {digest}, it should be {jar.sha256}. "
            "Kafka was not started. Delete that file and start again, and it is fetched anew; if that fails too, do not trust the repository."
        )


def write_lock(path: Path = LOCK) -> None:
    """Resolve Kafka's jars with jgo and write the lock file anew."""
    import jgo  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as temporary:
        os.environ |= {"M2_REPO": temporary, "JGO_CACHE_DIR": temporary}
        # Resolved one by one: together, the second would change the versions of the first.
        kafka = {(one.groupId, one.artifactId): one for one in jgo.resolve(KAFKA)}
        logging = {(one.groupId, one.artifactId): one for one in jgo.resolve(LOGGING)}
        lines = ["# Kafka's jars, made by `python -m hub_parts lock-jars`: group:artifact:version SHA-256"]
        for one in sorted({**logging, **kafka}.values(), key=lambda one: (one.groupId, one.artifactId)):
            digest = hashlib.sha256(one.resolve().read_bytes()).hexdigest()
            lines.append(f"{one.groupId}:{one.artifactId}:{one.version} {digest}")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
