"""The port to the object store, its S3 adapter and its fake."""

from hub_objectstore.memory import MemoryObjectStore
from hub_objectstore.port import DigestMismatch, ObjectInfo, ObjectMissing, ObjectStore, StoreRefused, StoreUnavailable
from hub_objectstore.s3 import S3ObjectStore

__all__ = [
    "DigestMismatch",
    "MemoryObjectStore",
    "ObjectInfo",
    "ObjectMissing",
    "ObjectStore",
    "S3ObjectStore",
    "StoreRefused",
    "StoreUnavailable",
]
