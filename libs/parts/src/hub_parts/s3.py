"""Asking an S3 store whether it works, and making the hub's buckets in it."""

import io
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import MinioException
from urllib3.exceptions import HTTPError

from hub_parts.credentials import BUCKETS
from hub_parts.errors import StartAborted

PROBE_BUCKET = BUCKETS[0]
PROBE_PREFIX = ".hub-parts/"


def client(endpoint: str, keys: Mapping[str, str], *, timeout_seconds: float = 5.0) -> Minio:
    """A client that answers within the timeout and never tries again by itself."""
    address = urlsplit(endpoint)
    return Minio(
        address.netloc,
        access_key=keys["access_key"],
        secret_key=keys["secret_key"],
        secure=address.scheme == "https",
        region="us-east-1",
        http_client=urllib3.PoolManager(timeout=urllib3.Timeout(timeout_seconds), retries=False, maxsize=8),
    )


def store_works(endpoint: str, keys: Mapping[str, str]) -> bool:
    """Whether the buckets are there, or can be made, and an object can be written and read."""
    store = client(endpoint, keys)
    name = PROBE_PREFIX + secrets.token_hex(8)
    try:
        for bucket in BUCKETS:
            if not store.bucket_exists(bucket):
                store.make_bucket(bucket)
        store.put_object(PROBE_BUCKET, name, io.BytesIO(b"hub"), 3)
        answer = store.get_object(PROBE_BUCKET, name)
        try:
            return bool(answer.read() == b"hub")
        finally:
            answer.close()
            store.remove_object(PROBE_BUCKET, name)
    except (MinioException, HTTPError, OSError):
        return False
    finally:
        store._http.clear()  # noqa: SLF001 - the SDK has no close, and an open socket is a warning


def require_buckets(endpoint: str, keys: Mapping[str, str]) -> None:
    """Make the hub's buckets in an existing store where they are missing.

    Raises:
        StartAborted: The store cannot be reached or refuses.
    """
    store = client(endpoint, keys)
    try:
        for bucket in BUCKETS:
            if not store.bucket_exists(bucket):
                store.make_bucket(bucket)
    except (MinioException, HTTPError, OSError) as error:
        raise StartAborted(
            f"the store at HUB_S3_ENDPOINT={endpoint} has no usable bucket {bucket}: {error}. "
            f"Check address, keys and rights, or make the buckets {', '.join(BUCKETS)} there."
        ) from error
    finally:
        store._http.clear()  # noqa: SLF001 - as above
