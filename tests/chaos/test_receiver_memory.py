"""An instance of 2 GiB in bounded memory."""

import time
from pathlib import Path

from hub_dicom.synthetic import synthetic_uid
from hub_runtime import create_topics
from support.large_passes import large_instance_passes
from support.parts import s3_of, start_parts
from support.receiver_process import TRUSTS, ReceiverProcess


def test_two_gibibytes_pass_in_bounded_memory(tmp_path: Path) -> None:
    trusts = tmp_path / "trusts.yaml"
    trusts.write_text(TRUSTS)
    with start_parts("kafka", "s3", secured_kafka=True) as parts:
        create_topics(parts.kafka_config("admin"))
        settings = {"HUB_RECEIVER_PORT": "0", "HUB_TRUSTS_FILE": str(trusts), "HUB_DATA_FOLDER": str(tmp_path), "HUB_LOG_STRICT": "true"}
        receiver = ReceiverProcess(parts.environment("receiver") | settings)
        try:
            receiver.wait_listening()
            start = time.monotonic()
            large_instance_passes(receiver, s3_of(parts).store(), synthetic_uid("two-gibibytes"), 2048, seconds=240)
            print(f"sent, stored, and read back in {time.monotonic() - start:.1f} s")
        finally:
            receiver.stop()
