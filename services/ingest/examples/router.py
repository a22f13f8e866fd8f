"""A trust's router in one file: it puts DICOM files into the hub's store and announces them. Copy it, and make it yours.

Needs confluent-kafka, minio and pydicom, and nothing of the hub's. services/ingest/ROUTERS.md is the contract that it keeps.

    python router.py --trust northgate --store https://store.example --kafka broker.example:9092 FILE...

Credentials come from the environment: ROUTER_S3_ACCESS_KEY, ROUTER_S3_SECRET_KEY, ROUTER_KAFKA_USERNAME, ROUTER_KAFKA_PASSWORD.
"""

import argparse
import hashlib
import json
import os
import secrets
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
from confluent_kafka import KafkaException, Producer
from minio import Minio
from pydicom import dcmread

TOPIC = "identifiable.instance.received"
BUCKET = "identifiable"


def main() -> int:
    """Send the files; 0 when all of them are stored and announced."""
    parser = argparse.ArgumentParser(description="Put DICOM files into the hub's store and announce them.")
    parser.add_argument("--trust", required=True)
    parser.add_argument("--store", required=True, help="the store's URL")
    parser.add_argument("--kafka", required=True, help="bootstrap servers")
    parser.add_argument("--protocol", default="SASL_SSL", help="SASL_PLAINTEXT only on a machine of your own")
    parser.add_argument("--whole", action="store_true", help="the files are whole studies: the hub need not wait for more of them")
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    counts = Counter(str(dcmread(path, specific_tags=["StudyInstanceUID"]).StudyInstanceUID) for path in arguments.files if arguments.whole)
    address = urlsplit(arguments.store)
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(30), retries=False)
    store = Minio(
        address.netloc,
        access_key=os.environ["ROUTER_S3_ACCESS_KEY"],
        secret_key=os.environ["ROUTER_S3_SECRET_KEY"],
        secure=address.scheme == "https",
        region="us-east-1",  # a router may not ask for it
        http_client=pool,
    )
    producer = Producer(
        {
            "bootstrap.servers": arguments.kafka,
            "security.protocol": arguments.protocol,
            "sasl.mechanisms": "PLAIN",
            "sasl.username": os.environ["ROUTER_KAFKA_USERNAME"],
            "sasl.password": os.environ["ROUTER_KAFKA_PASSWORD"],
            "acks": "all",
            "enable.idempotence": True,
            # Java's partitioner. librdkafka's own puts a study into another partition than the hub's services do.
            "partitioner": "murmur2_random",
        }
    )
    failed: list[str] = []
    trace = secrets.token_hex(16)
    for path in arguments.files:
        data = put(store, arguments.trust, path)  # first the object, then the word about it
        if arguments.whole:
            data["expected_instances"] = counts[data["study_instance_uid"]]
        announce(producer, data, trace, failed)
    producer.flush(30)
    pool.clear()
    if failed or len(producer):
        sys.stderr.write(f"{len(failed) + len(producer)} announcements were not acknowledged: send those files again\n")
        return 1
    sys.stdout.write(f"{len(arguments.files)} instances stored and announced\n")
    return 0


def put(store: Minio, trust: str, path: Path) -> dict[str, Any]:
    """Store a file under its key; what its event says."""
    header = dcmread(path, stop_before_pixels=True)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # of the whole file, as it is stored
    uids = {
        "study_instance_uid": str(header.StudyInstanceUID),
        "series_instance_uid": str(header.SeriesInstanceUID),
        "sop_instance_uid": str(header.SOPInstanceUID),
    }
    key = "/".join([trust, *uids.values(), sha256])
    store.fput_object(BUCKET, key, str(path), content_type="application/dicom")
    return {
        "trust": trust,
        **uids,
        "sop_class_uid": str(header.SOPClassUID),
        "transfer_syntax_uid": str(header.file_meta.TransferSyntaxUID),
        "object": {"bucket": BUCKET, "key": key, "sha256": sha256, "size": path.stat().st_size},
        "origin": "router",
    }


def announce(producer: Producer, data: dict[str, Any], trace: str, failed: list[str]) -> None:
    """Produce the event: a CloudEvent in binary mode, keyed by study. What is not acknowledged comes into `failed`."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": str(uuid.uuid4()),
        "ce_source": f"router.{data['trust']}",
        "ce_type": "hub.instance.received.v1",
        "ce_time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "content-type": "application/json",
        "traceparent": f"00-{trace}-{secrets.token_hex(8)}-01",
    }

    def acknowledged(error: object, _message: object) -> None:
        if error is not None:
            failed.append(data["sop_instance_uid"])

    for _ in attempts():
        try:
            producer.produce(
                TOPIC,
                key=data["study_instance_uid"].encode(),
                value=json.dumps(data).encode(),
                headers=[(name, value.encode()) for name, value in headers.items()],
                on_delivery=acknowledged,
            )
        except BufferError:
            producer.poll(1)  # the queue is full: let it drain
        except KafkaException:
            break
        else:
            return
    failed.append(data["sop_instance_uid"])


def attempts() -> Iterator[int]:
    """So often a full queue is waited for."""
    return iter(range(30))


if __name__ == "__main__":
    raise SystemExit(main())
