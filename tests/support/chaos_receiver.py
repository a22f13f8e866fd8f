"""A receiver on parts of its own, for the slow suites."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hub_objectstore import S3ObjectStore
from hub_runtime import create_topics
from support.parts import s3_of, start_parts
from support.receiver_process import TRUSTS, ReceiverProcess


@contextmanager
def receiver_on_own_parts(folder: Path, **more: str) -> Iterator[tuple[ReceiverProcess, S3ObjectStore]]:
    """A ready receiver whose data folder is `folder`, and the store as an administrator sees it."""
    with start_parts("kafka", "s3", secured_kafka=True) as parts:
        create_topics(parts.kafka_config("admin"))
        trusts = folder / "trusts.yaml"
        trusts.write_text(TRUSTS)
        settings = {"HUB_RECEIVER_PORT": "0", "HUB_TRUSTS_FILE": str(trusts), "HUB_DATA_FOLDER": str(folder), "HUB_LOG_STRICT": "true"}
        receiver = ReceiverProcess(parts.environment("receiver") | settings | more)
        try:
            receiver.wait_listening()
            receiver.wait_until(receiver.ready)
            yield receiver, s3_of(parts).store()
        finally:
            receiver.stop()
