"""The DICOM side alone, in this process: what cannot be seen from outside."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hub_dicom import Trust, Trusts
from hub_dicom.synthetic import SyntheticPatient, synthetic_series
from hub_ingest.arrival import Answer, Arrival
from hub_ingest.receiver import METRICS
from hub_ingest.receiver_scp import StorageProvider
from hub_ingest.settings import ReceiverSettings
from hub_runtime import Metrics
from support.dicom_files import write_series
from support.senders import Peer, send

TRUST = Trust(name="northgate", ae_titles=("NORTHGATE",), addresses=("127.0.0.1/32",), assigning_authority="RNG")


@contextmanager
def _provider(folder: Path, trusts: Trusts, taken: list[Arrival]) -> Iterator[StorageProvider[Trust]]:
    settings = ReceiverSettings.model_validate(
        {"kafka_bootstrap_servers": "x", "s3_endpoint": "http://x", "s3_access_key": "a", "s3_secret_key": "b", "receiver_port": 0}
    )

    def take(_call: Trust, arrival: Arrival) -> Answer:
        taken.append(arrival)
        return Answer(0x0000)

    provider = StorageProvider(settings, trusts, admit=lambda trust: trust, take=take, metrics=Metrics(METRICS), folder=folder)
    thread = threading.Thread(target=provider.serve)
    thread.start()
    try:
        yield provider
    finally:
        assert provider.close(5) == 0
        thread.join()


def test_accepted_connections_do_not_wait_for_more_to_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    with _provider(tmp_path, Trusts(trusts=(TRUST,)), []) as provider:
        accepted = provider._server.get_request

        def observed() -> tuple[socket.socket, object]:
            connection, address = accepted()
            seen.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            return connection, address

        monkeypatch.setattr(provider._server, "get_request", observed)
        assert _statuses(provider, tmp_path) == [0x0000]
    assert seen == [1]


class BrokenTrusts:
    """Fails where nobody thought it could."""

    def by_caller(self, _title: str, _address: str) -> Trust | None:
        raise RuntimeError("unforeseen")


def test_when_looking_up_the_caller_fails_nothing_gets_in(tmp_path: Path) -> None:
    taken: list[Arrival] = []
    with _provider(tmp_path, cast("Any", BrokenTrusts()), taken) as provider:
        assert _statuses(provider, tmp_path) == [0x0124]
    assert taken == []


def _statuses(provider: StorageProvider[Trust], folder: Path) -> list[int | None]:
    paths = write_series(folder / "files", synthetic_series(SyntheticPatient("SYNTHETIC^P", "P"), study="provider", instances=1))
    return [one.status for one in send(Peer(provider.port), paths)]
