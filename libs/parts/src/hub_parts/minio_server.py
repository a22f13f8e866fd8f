"""MinIO's own server, for a store that survives a power cut."""

import json
from dataclasses import dataclass
from pathlib import Path

import urllib3
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException
from minio.minioadmin import MinioAdmin
from urllib3.exceptions import HTTPError

from hub_parts import minio_build
from hub_parts.credentials import ADMIN, S3_RIGHTS, Credentials, trust_of
from hub_parts.errors import StartAborted
from hub_parts.s3 import store_works
from hub_parts.supervisor import PART, Program

OBJECT_ACTIONS = {
    "r": ("s3:GetObject", "s3:GetObjectTagging"),
    "w": ("s3:PutObject", "s3:DeleteObject", "s3:PutObjectTagging", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"),
    "l": (),
}
BUCKET_ACTIONS = {"r": ("s3:GetBucketLocation",), "w": ("s3:GetBucketLocation",), "l": ("s3:GetBucketLocation", "s3:ListBucket")}


@dataclass(frozen=True)
class MinioServer:
    """Where one store lives and how it behaves."""

    folder: Path
    cache: Path
    port: int
    credentials: Credentials
    flush_every_object: bool

    @property
    def endpoint(self) -> str:
        """The address of the store."""
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> Program:
        """Say how the server is run.

        Raises:
            StartAborted: It has not been built yet.
        """
        program = minio_build.binary(self.cache)
        if not program.exists():
            raise StartAborted(f"MinIO's server is missing: there is no {program}. `make minio` builds it (once, three to five minutes).")
        (self.folder / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
        admin = self.credentials.s3[ADMIN]
        return Program(
            name="minio",
            command=[
                *(str(program), "server", "--address", f"127.0.0.1:{self.port}", "--certs-dir", str(self.folder / "certs")),
                str(self.folder / "data"),
            ],
            environment={
                "MINIO_ROOT_USER": admin["access_key"],
                "MINIO_ROOT_PASSWORD": admin["secret_key"],
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
                "MINIO_FS_OSYNC": "on" if self.flush_every_object else "off",
            },
            health=lambda: store_works(self.endpoint, admin),
            priority=PART,
            stop_seconds=20,
            folder=self.folder,
        )

    def make_identities(self) -> None:
        """One user and policy per service; repeating it changes nothing.

        Raises:
            StartAborted: The server refuses.
        """
        keys = self.credentials.s3
        pool = urllib3.PoolManager(timeout=urllib3.Timeout(15), retries=False)
        provider = StaticProvider(keys[ADMIN]["access_key"], keys[ADMIN]["secret_key"])
        admin = MinioAdmin(endpoint=f"127.0.0.1:{self.port}", credentials=provider, secure=False, http_client=pool)
        try:
            for name in keys:
                if name != ADMIN:
                    admin.user_add(keys[name]["access_key"], keys[name]["secret_key"])
                    admin.policy_add(f"hub-{name}", policy=policy(name))
                    if json.loads(admin.user_info(keys[name]["access_key"])).get("policyName") != f"hub-{name}":
                        admin.policy_set(f"hub-{name}", user=keys[name]["access_key"])
        except (MinioAdminException, HTTPError, OSError) as error:
            raise StartAborted(f"MinIO did not take the services' identities: {error}") from error
        finally:
            pool.clear()


def policy(identity: str) -> dict[str, object]:
    """An identity's rights in the words of S3."""
    trust = trust_of(identity)
    if trust is not None:
        actions = ["s3:AbortMultipartUpload", "s3:ListMultipartUploadParts", "s3:PutObject"]
        return {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": actions, "Resource": [f"arn:aws:s3:::identifiable/{trust}/*"]}],
        }
    statements = []
    for bucket, rights in S3_RIGHTS[identity].items():
        on_bucket = sorted({action for right in rights for action in BUCKET_ACTIONS[right]})
        on_objects = sorted({action for right in rights for action in OBJECT_ACTIONS[right]})
        statements.append({"Effect": "Allow", "Action": on_bucket, "Resource": [f"arn:aws:s3:::{bucket}"]})
        statements.append({"Effect": "Allow", "Action": on_objects, "Resource": [f"arn:aws:s3:::{bucket}/*"]})
    return {"Version": "2012-10-17", "Statement": statements}
