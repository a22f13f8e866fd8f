"""Mutual TLS with DCMTK and pynetdicom: who shows whose certificate gets in, and everybody else is told or logged why."""

import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_dicom.synthetic import SyntheticPatient, synthetic_series, synthetic_uid
from hub_objectstore import S3ObjectStore
from support.certificates import Authority, Certificate
from support.dicom_files import write_series
from support.receiver_process import ReceiverProcess, StartReceiver
from support.senders import STORESCU, Peer, Rejected, association, echo, send

PATIENT = SyntheticPatient("SYNTHETIC^TLS", "T-1")
ECHO = ("1.2.840.10008.1.1", "1.2.840.10008.1.2")


@dataclass
class Door:
    """A receiver that offers TLS."""

    receiver: ReceiverProcess
    authority: Authority
    folder: Path

    @property
    def port(self) -> int:
        return int(self.receiver.line("listening for TLS")["port"])

    def caller(self, calling: str, certificate: Certificate | None, *, context: ssl.SSLContext | None = None) -> Peer:
        context = context or self.context(certificate)
        return Peer(self.port, calling=calling, tls=context)

    def context(self, certificate: Certificate | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.file))
        if certificate is not None:
            context.load_cert_chain(certificate.certificate, certificate.key)
        return context

    def refused(self, calling: str, reason: str) -> None:
        """Wait for the log to say that a title was refused for a reason."""
        self.receiver.wait_until(
            lambda: any((line.get("calling_ae"), line.get("reason")) == (calling, reason) for line in self.receiver.lines)
        )

    def failures(self) -> list[str]:
        return [line["reason"] for line in self.receiver.lines if line["event"] == "TLS handshake failed"]


@pytest.fixture(scope="module")
def door(start_receiver: StartReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    server = authority.issue("hub.example", file="server")
    with start_receiver(
        HUB_RECEIVER_TLS_PORT="0",
        HUB_RECEIVER_TLS_CERTIFICATE_FILE=str(server.certificate),
        HUB_RECEIVER_TLS_KEY_FILE=str(server.key),
        HUB_RECEIVER_TLS_CA_FILE=str(authority.file),
    ) as receiver:
        yield Door(receiver, authority, folder)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_trust_with_its_certificate_is_served(door: Door, admin_store: S3ObjectStore, tmp_path: Path, version: ssl.TLSVersion) -> None:
    study = f"tls-{version.name}"
    context = door.context(door.authority.issue("router.easton.example"))
    context.minimum_version = context.maximum_version = version
    paths = write_series(tmp_path, synthetic_series(PATIENT, study=study, instances=3, pixels=256))
    sent = send(door.caller("EASTON", None, context=context), paths)
    assert [one.status for one in sent] == [0, 0, 0]
    assert len(list(admin_store.list("identifiable", f"easton/{synthetic_uid(study)}/"))) == 3


@pytest.mark.peers
@pytest.mark.parametrize("profile", ["--profile-bcp195-nd", "--profile-bcp195-ex"])
def test_dcmtk_sends_over_tls(door: Door, admin_store: S3ObjectStore, tmp_path: Path, profile: str) -> None:
    assert STORESCU, "DCMTK's storescu is not there: apt-get install dcmtk"
    own = door.authority.issue("router2.easton.example")
    study = f"tls{profile}"
    paths = write_series(tmp_path, synthetic_series(PATIENT, study=study, instances=2))
    tls = ["+tls", str(own.key), str(own.certificate), "+cf", str(door.authority.file), profile]
    command = [STORESCU, *tls, "-aet", "EASTON", "-aec", "REGIONALHUB", "127.0.0.1", str(door.port), *map(str, paths)]
    done = subprocess.run(command, env=os.environ | {"TCP_NODELAY": "1"}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(admin_store.list("identifiable", f"easton/{synthetic_uid(study)}/"))) == 2


def test_another_trusts_certificate_is_refused(door: Door) -> None:
    west = door.authority.issue("router.westbury.example")
    for calling, reason in (("EASTON", "other-certificate"), ("NORTHGATE", "no-certificate-entered"), ("NOBODY", "unknown-caller")):
        with pytest.raises(Rejected) as rejected, association(door.caller(calling, west), [ECHO]):
            pass
        assert rejected.value.code == (1, 1, 3)
        door.refused(calling, reason)
    with (
        pytest.raises(Rejected) as rejected,
        association(Peer(door.port, called="OTHER", calling="WESTBURY", tls=door.context(west)), [ECHO]),
    ):
        pass
    assert rejected.value.code == (1, 1, 7)
    assert echo(door.caller("WESTBURY", west)) == 0


def test_a_trust_with_certificates_does_not_come_in_without_tls(door: Door) -> None:
    with pytest.raises(Rejected) as rejected, association(door.receiver.as_caller("EASTON"), [ECHO]):
        pass
    assert rejected.value.code == (1, 1, 3)
    door.refused("EASTON", "tls-required")
    assert echo(door.receiver.as_caller("NORTHGATE")) == 0


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("expired", "certificate-expired"),
        ("early", "certificate-not-yet-valid"),
        ("stranger", "unknown-issuer"),
        ("none", "no-certificate"),
        ("plain", "no-tls"),
        ("old", "tls-version"),
        ("weak", "no-shared-cipher-suite"),
    ],
)
def test_a_failed_handshake_is_logged_with_its_reason(door: Door, tmp_path: Path, kind: str, reason: str) -> None:
    name = "router.easton.example"
    match kind:
        case "expired":
            own: Certificate | None = door.authority.issue(name, begins_in_days=-3, ends_in_days=-1, file="expired")
        case "early":
            own = door.authority.issue(name, begins_in_days=1, file="early")
        case "stranger":
            own = Authority(tmp_path, "stranger").issue(name)
        case "none":
            own = None
        case _:
            own = door.authority.issue(name)
    context = door.context(own)
    if kind == "weak":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE-ECDSA-AES128-SHA256:AES128-SHA")
    if kind == "old":
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
    before = len(door.failures())
    if kind == "plain":
        with pytest.raises(ConnectionError), association(Peer(door.port, calling="EASTON"), [ECHO]):
            pass
    else:
        with pytest.raises(ConnectionError), association(door.caller("EASTON", None, context=context), [ECHO]):
            pass
    door.receiver.wait_until(lambda: len(door.failures()) > before)
    assert door.failures()[before:] == [reason]
    assert door.receiver.metric(f'hub_receiver_tls_handshakes_total{{reason="{reason}"}}') >= 1
    assert echo(door.caller("EASTON", door.authority.issue(name))) == 0


def test_who_is_silent_keeps_nobody_waiting_and_is_hung_up_on(door: Door) -> None:
    own = door.authority.issue("router.easton.example")
    before = len(door.failures())
    with socket.create_connection(("127.0.0.1", door.port)) as silent:
        start = time.monotonic()
        assert echo(door.caller("EASTON", own)) == 0
        assert time.monotonic() - start < 5
        silent.settimeout(20)
        assert silent.recv(1) == b""
    door.receiver.wait_until(lambda: door.failures()[before:] == ["timeout"])


def test_the_session_is_of_the_profile(door: Door) -> None:
    own = door.authority.issue("router.easton.example")
    context = door.context(own)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", door.port)) as connection,
        context.wrap_socket(connection, server_hostname="hub.example") as inside,
    ):
        assert inside.cipher()[0] == "ECDHE-ECDSA-AES128-GCM-SHA256"  # type: ignore[index]  # there is one after a handshake
        assert inside.compression() is None
        assert inside.session is not None
        assert not inside.session.has_ticket


def test_files_are_reloaded_without_dropping_an_association(door: Door) -> None:
    own = door.authority.issue("router.easton.example")
    with association(door.caller("EASTON", own), [ECHO]) as assoc:
        serial = _server_serial(door)
        door.authority.issue("hub.example", file="server")
        other = Authority(door.folder, "second")
        door.authority.file.write_text(door.authority.file.read_text() + other.file.read_text())
        assert _server_serial(door) != serial
        assert echo(door.caller("EASTON", None, context=_with(door, other))) == 0
        assert assoc.send_c_echo().Status == 0
        # What cannot be used is not taken.
        key = (door.folder / "server.key").read_text()
        (door.folder / "server.key").write_text("no key")
        assert echo(door.caller("EASTON", own)) == 0
        assert "changed TLS files are not taken, the old ones serve on" in door.receiver.events
        (door.folder / "server.key").write_text(key)
        assert assoc.send_c_echo().Status == 0
        assert echo(door.caller("EASTON", own)) == 0


def _with(door: Door, authority: Authority) -> ssl.SSLContext:
    return door.context(authority.issue("router.easton.example", file="renewed"))


def _server_serial(door: Door) -> str:
    context = door.context(door.authority.issue("router.easton.example"))
    with (
        socket.create_connection(("127.0.0.1", door.port)) as connection,
        context.wrap_socket(connection, server_hostname="hub.example") as inside,
    ):
        return str(inside.getpeercert()["serialNumber"])  # type: ignore[index]  # it was verified


def test_without_usable_files_it_does_not_start(start_receiver: StartReceiver, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own, other = authority.issue("hub.example"), authority.issue("other.example")
    with (
        pytest.raises(AssertionError),
        start_receiver(
            HUB_RECEIVER_TLS_PORT="0",
            HUB_RECEIVER_TLS_CERTIFICATE_FILE=str(own.certificate),
            HUB_RECEIVER_TLS_KEY_FILE=str(other.key),
            HUB_RECEIVER_TLS_CA_FILE=str(authority.file),
        ),
    ):
        pass
