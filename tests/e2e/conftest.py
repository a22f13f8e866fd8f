"""A hub that is left in peace, with what three trusts sent."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.cohort import TRUSTS_YAML, Cohort, make_cohort, write_keys
from support.exported import Exported, create, download
from support.hub import Hub, send, wait_for


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def hub_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys and trusts that all hubs of these tests share: the same input makes the same dataset."""
    folder = tmp_path_factory.mktemp("shared")
    trusts = folder / "trusts.yaml"
    trusts.write_text(TRUSTS_YAML)
    return write_keys(folder / "keys") | {"HUB_TRUSTS_FILE": str(trusts), "HUB_SWEEP_SECONDS": "10"}


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory, hub_environment: dict[str, str]) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("peaceful") / "hub", hub_environment)
    try:
        yield hub.start()
    finally:
        hub.stop()


@pytest.fixture(scope="session")
def peaceful(hub: Hub, cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The cohort through an undisturbed hub, three trusts at once, as dataset `main`, version 1."""
    with ThreadPoolExecutor(len(cohort.files)) as pool:
        for result in pool.map(lambda item: send(hub, *item), cohort.files.items()):
            assert result.returncode == 0, result.stdout + result.stderr
    wait_for(lambda: hub.indexed() == len(cohort.all), 120, lambda: f"{hub.indexed()} of {len(cohort.all)} instances indexed")
    create(hub, "main")
    return download(hub, "main", 1, tmp_path_factory.mktemp("download"))
