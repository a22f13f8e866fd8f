"""Promise 2: whatever is killed while it works, the dataset is the one of an undisturbed run."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.cohort import Cohort
from support.exported import Exported, create, download
from support.hub import Hub, send, wait_for

TRIES = 12


@pytest.fixture(scope="module")
def other_hub(tmp_path_factory: pytest.TempPathFactory, hub_environment: dict[str, str]) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("disturbed") / "hub", hub_environment)
    try:
        yield hub.start()
    finally:
        hub.stop()


def send_until_acknowledged(hub: Hub, calling: str, paths: list[Path]) -> None:
    """What a router does: it keeps its copy until the hub says 0x0000, and sends again after a failure."""
    for _ in range(TRIES):
        if send(hub, calling, paths).returncode == 0:
            return
        time.sleep(2)
    raise AssertionError(f"{calling} could not deliver in {TRIES} tries")


@pytest.mark.timeout(600)
def test_the_dataset_is_the_same_after_every_process_was_killed(other_hub: Hub, cohort: Cohort, peaceful: Exported, tmp_path: Path) -> None:
    hub = other_hub
    with ThreadPoolExecutor(len(cohort.files)) as pool:
        senders = [pool.submit(send_until_acknowledged, hub, calling, paths) for calling, paths in cohort.files.items()]
        time.sleep(1.0)
        for name in ("receiver", "kafka", hub.endpoints["s3"]["store"]):
            assert not all(sender.done() for sender in senders), f"everything was sent before {name} could be killed: send more"
            hub.kill(name)
            time.sleep(2.0)
        hub.kill("assembler")
        for sender in senders:
            sender.result()
    wait_for(hub.indexed_or_none, 120, "no study reached the index")
    for name in ("deidentification", "indexing", "postgres", "closer"):
        hub.kill(name)
        time.sleep(1.5)
    wait_for(
        lambda: hub.indexed_or_none() == len(cohort.all), 180, lambda: f"{hub.indexed_or_none()} of {len(cohort.all)} instances indexed"
    )

    stop = threading.Event()

    def kill_export() -> None:
        for _ in range(3):
            if not stop.wait(0.7):
                hub.kill("export")

    killer = threading.Thread(target=kill_export)
    killer.start()
    create(hub, "main")
    stop.set()
    killer.join()
    assert download(hub, "main", 1, tmp_path).digests == peaceful.digests
