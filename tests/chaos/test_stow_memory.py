"""A body of 2 GiB in fixed memory."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from hub_dicom import parse_instance_key, read_file_meta
from hub_dicom.synthetic import SyntheticPatient, synthetic_series, synthetic_uid
from hub_runtime import create_topics
from support.parts import s3_of, start_parts
from support.stow import stow_process

SIZE = 2 * 2**30
LIMIT = 150 * 2**20
BLOCK = bytes(range(256)) * 1024


def body(instance: bytes, size: int) -> Iterator[bytes]:
    """One part: the instance, and a private element that makes it large."""
    yield b"--b\r\nContent-Type: application/dicom\r\n\r\n" + instance + b"\x01\xff\x10\x00LO\x08\x00SYNTHTIC\x01\xff\x01\x10OB\x00\x00"
    yield size.to_bytes(4, "little")
    for _ in range(size // len(BLOCK)):
        yield BLOCK
    yield b"\r\n--b--\r\n"


def test_two_gibibytes_pass_in_fixed_memory(tmp_path: Path) -> None:
    (instance,) = synthetic_series(SyntheticPatient("SYNTHETIC^LARGE", "L-1"), study="large", instances=1)
    # What follows has the highest tags, so the pixel data before it stays in order.
    assert read_file_meta(instance.content).transfer_syntax_uid == "1.2.840.10008.1.2.1"
    with start_parts("kafka", "s3", secured_kafka=True) as parts:
        create_topics(parts.kafka_config("admin"))
        with stow_process(parts, tmp_path) as stow:
            stow.wait_until(stow.ready)
            process = psutil.Process(stow.process.pid)
            before, peak, done = process.memory_info().rss, 0, threading.Event()

            def watch() -> None:
                nonlocal peak
                while not done.wait(0.02):
                    peak = max(peak, process.memory_info().rss)

            watcher = threading.Thread(target=watch)
            watcher.start()
            start = time.monotonic()
            response = stow.post(body(instance.content, SIZE), timeout=240)
            took = time.monotonic() - start
            done.set()
            watcher.join()
        print(f"2 GiB in {took:.1f} s; resident before {before / 2**20:.0f} MiB, at most {peak / 2**20:.0f} MiB")
        assert response.status_code == 200, response.text
        assert peak < LIMIT, f"{peak / 2**20:.0f} MiB"
        (stored,) = s3_of(parts).store().list("identifiable", f"northgate/{synthetic_uid('large')}/")
        assert stored.size > SIZE
        assert parse_instance_key(stored.key).sop_instance_uid == instance.sop_instance_uid
        assert list((tmp_path / "stow").iterdir()) == []
