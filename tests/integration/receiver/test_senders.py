"""Programs of others as senders: DCMTK's storescu and dcmsend, Orthanc as a router; plain and over TLS. One bad file costs only itself."""

import io
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_dicom import parse_instance_key, read_file_meta
from hub_dicom.synthetic import SyntheticPatient, nhs_test_number, synthetic_series, synthetic_uid
from hub_objectstore import S3ObjectStore
from pydicom import dcmread, dcmwrite
from pydicom.uid import UID, EncapsulatedPDFStorage
from support.certificates import Authority
from support.dicom_files import write_series
from support.orthanc import orthanc
from support.receiver_process import ReceiverProcess, StartReceiver, Topic
from support.senders import STORESCU, Peer, storescu
from support.tls_relay import tls_relay

pytestmark = pytest.mark.peers

BUCKET = "identifiable"
DCMSEND = shutil.which("dcmsend", path="/usr/local/bin:/usr/bin:/bin")
PATIENT = SyntheticPatient("SYNTHETIC^SENDERS", "S-1")
PRIVATE = UID("1.2.840.113619.4.27")


def objects(store: S3ObjectStore, study: str, trust: str = "northgate") -> dict[str, bytes]:
    """SOP Instance UID to data set."""
    found = {}
    for info in store.list(BUCKET, f"{trust}/{synthetic_uid(study)}/"):
        content = store.get(BUCKET, info.key)
        found[parse_instance_key(info.key).sop_instance_uid] = content[read_file_meta(content).data_set_offset :]
    return found


def expected(study: str, numbers: range | list[int]) -> set[str]:
    return {synthetic_uid(study, 1, number) for number in numbers}


def dcmsend(peer: Peer, paths: list[Path], *options: str) -> subprocess.CompletedProcess[str]:
    assert DCMSEND, "DCMTK's dcmsend is not there: apt-get install dcmtk"
    command = [DCMSEND, "-v", *options, "-aet", peer.calling, "-aec", peer.called, peer.host, str(peer.port), *map(str, paths)]
    return subprocess.run(command, env=os.environ | {"TCP_NODELAY": "1"}, capture_output=True, text=True, timeout=120, check=False)


def spoilt(path: Path, how: str) -> None:
    """Make a bad file of a good one, of a kind that senders read and send."""
    data_set = dcmread(path)
    match how:
        case "no-study":  # answered 0xC000: it belongs nowhere
            del data_set.StudyInstanceUID
        case "private":  # its context is rejected
            data_set.SOPClassUID = data_set.file_meta.MediaStorageSOPClassUID = PRIVATE
        case "unwanted":  # netherby's rules refuse it: its context is rejected
            data_set.SOPClassUID = data_set.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
        case "test-patient":
            data_set.PatientName, data_set.PatientID = "ZZZTEST^WARD", nhs_test_number(3)
        case "modality":
            data_set.Modality = "MR"
        case "pixels":  # fewer than Rows and Columns say
            data_set.PixelData = data_set.PixelData[:100]
    buffer = io.BytesIO()
    dcmwrite(buffer, data_set)
    path.write_bytes(buffer.getvalue())


@pytest.fixture
def six(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, list[Path]]:
    """The name of a study, and its six files; the third is to be spoilt."""
    study = request.node.name
    return study, write_series(tmp_path / "six", synthetic_series(PATIENT, study=study, instances=6))


# What storescu says of the bad file: the status of the response, or that nobody takes it.
BAD = {"no-study": "Error: CannotUnderstand", "unwanted": "No presentation context"}


@pytest.mark.parametrize("how", BAD)
def test_storescu_no_halt_loses_only_the_bad_file(
    receiver: ReceiverProcess, admin_store: S3ObjectStore, topic: Topic, six: tuple[str, list[Path]], how: str
) -> None:
    study, paths = six
    spoilt(paths[2], how)
    assert STORESCU, "DCMTK's storescu is not there: apt-get install dcmtk"
    done = storescu(receiver.as_caller("NETHERBY"), paths, "--no-halt")
    assert set(objects(admin_store, study, "netherby")) == expected(study, [1, 2, 4, 5, 6]), done.stderr
    assert len(topic.events()) == 5
    assert BAD[how] in done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("Store Response (Success)") == 5


@pytest.mark.parametrize("how", BAD)
def test_storescu_stops_at_the_bad_file_and_goes_on_behind_it_when_it_is_asked_again(
    receiver: ReceiverProcess, admin_store: S3ObjectStore, topic: Topic, six: tuple[str, list[Path]], how: str
) -> None:
    study, paths = six
    spoilt(paths[2], how)
    first = storescu(receiver.as_caller("NETHERBY"), paths)
    assert first.returncode != 0
    assert BAD[how] in first.stdout + first.stderr
    assert set(objects(admin_store, study, "netherby")) == expected(study, [1, 2]), "what came before it is safe"
    second = storescu(receiver.as_caller("NETHERBY"), paths[3:])
    assert second.returncode == 0, second.stderr
    assert set(objects(admin_store, study, "netherby")) == expected(study, [1, 2, 4, 5, 6])
    assert len(topic.events()) == 5, "and nothing of the bad one is announced"


@pytest.mark.parametrize("options", [(), ("--no-halt",)])
@pytest.mark.parametrize("how", ["test-patient", "modality", "pixels"])
def test_storescu_does_not_notice_what_is_held_back_later(
    receiver: ReceiverProcess, admin_store: S3ObjectStore, six: tuple[str, list[Path]], how: str, options: tuple[str, ...]
) -> None:
    study, paths = six
    spoilt(paths[2], how)
    done = storescu(receiver.as_caller("NETHERBY"), paths, *options)
    assert done.returncode == 0, done.stderr
    assert set(objects(admin_store, study, "netherby")) == expected(study, range(1, 7))


def test_dcmsend_sends_a_study(receiver: ReceiverProcess, admin_store: S3ObjectStore, topic: Topic, six: tuple[str, list[Path]]) -> None:
    study, paths = six
    done = dcmsend(receiver.peer, paths)
    assert done.returncode == 0, done.stderr
    found = objects(admin_store, study)
    assert set(found) == expected(study, range(1, 7))
    for path in paths:
        content = path.read_bytes()
        assert content[read_file_meta(content).data_set_offset :] in found.values()
    assert len(topic.events()) == 6


@pytest.mark.parametrize("how", ["no-study", "private"])
def test_dcmsend_loses_only_the_bad_file(
    receiver: ReceiverProcess, admin_store: S3ObjectStore, six: tuple[str, list[Path]], how: str
) -> None:
    study, paths = six
    spoilt(paths[2], how)
    done = dcmsend(receiver.peer, paths, "--no-halt", "--no-uid-checks")
    assert set(objects(admin_store, study)) == expected(study, [1, 2, 4, 5, 6]), done.stdout + done.stderr


def test_who_is_refused_is_told_so_by_dcmsend(receiver: ReceiverProcess, six: tuple[str, list[Path]]) -> None:
    _, paths = six
    for peer, reason in (
        (receiver.as_caller("NOBODY"), "unknown-caller"),
        (Peer(receiver.peer.port, called="ANOTHERHUB"), "unknown-called-ae"),
    ):
        done = dcmsend(peer, paths)
        assert done.returncode != 0
        assert "Association Rejected" in done.stdout + done.stderr
        receiver.wait_until(lambda reason=reason: reason in {line.get("reason") for line in receiver.lines})  # type: ignore[misc]  # a loop's value


class Doors:
    """A receiver with a TLS port, and the authority of its certificates."""

    def __init__(self, receiver: ReceiverProcess, authority: Authority) -> None:
        self.receiver = receiver
        self.authority = authority
        self.port = int(receiver.line("listening for TLS")["port"])


@pytest.fixture(scope="module")
def doors(start_receiver: StartReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    server = authority.issue("hub.example", file="server")
    with start_receiver(
        HUB_RECEIVER_TLS_PORT="0",
        HUB_RECEIVER_TLS_CERTIFICATE_FILE=str(server.certificate),
        HUB_RECEIVER_TLS_KEY_FILE=str(server.key),
        HUB_RECEIVER_TLS_CA_FILE=str(authority.file),
    ) as receiver:
        yield Doors(receiver, authority)


def test_dcmsend_sends_over_tls_through_a_relay(doors: Doors, admin_store: S3ObjectStore, six: tuple[str, list[Path]]) -> None:
    """Its own TLS is none in DCMTK 3.6.7; hospitals put stunnel or the like before it."""
    study, paths = six
    own = doors.authority.issue("router.easton.example", file="relay")
    context = ssl.create_default_context(cafile=str(doors.authority.file))
    context.load_cert_chain(own.certificate, own.key)
    with tls_relay(doors.port, context) as port:
        done = dcmsend(Peer(port, calling="EASTON"), paths)
        assert done.returncode == 0, done.stdout + done.stderr
        assert set(objects(admin_store, study, "easton")) == expected(study, range(1, 7))
        other = dcmsend(Peer(port, calling="WESTBURY"), paths)
        assert "Association Rejected" in other.stdout + other.stderr


@pytest.mark.parametrize("options", [(), ("--no-halt",)])
def test_storescu_over_tls_loses_only_the_bad_file(
    doors: Doors, admin_store: S3ObjectStore, six: tuple[str, list[Path]], options: tuple[str, ...]
) -> None:
    study, paths = six
    spoilt(paths[2], "no-study")
    own = doors.authority.issue("router.easton.example", file="storescu")
    tls = ("+tls", str(own.key), str(own.certificate), "+cf", str(doors.authority.file))
    done = storescu(Peer(doors.port, calling="EASTON"), paths, *tls, *options)
    numbers = [1, 2, 4, 5, 6] if options else [1, 2]
    assert set(objects(admin_store, study, "easton")) == expected(study, numbers), done.stderr


def test_orthanc_sends_a_study_as_a_router(receiver: ReceiverProcess, admin_store: S3ObjectStore, topic: Topic, tmp_path: Path) -> None:
    modality = {"AET": "REGIONALHUB", "Host": "127.0.0.1", "Port": receiver.peer.port}
    study, numbers = "orthanc-router", range(1, 31)
    contents = [one.content for one in synthetic_series(PATIENT, study=study, instances=30)]
    with orthanc(tmp_path, DicomAet="NORTHGATE", DicomModalities={"hub": modality}) as router:
        assert router.post("/modalities/hub/echo", json={}).status_code == 200
        for content in contents:
            assert router.post("/instances", content=content).status_code == 200
        (resource,) = router.get("/studies").json()
        sent = router.post("/modalities/hub/store", json={"Resources": [resource], "Synchronous": True})
        assert sent.status_code == 200, sent.text
        assert (sent.json()["InstancesCount"], sent.json()["FailedInstancesCount"]) == (30, 0)
        found = objects(admin_store, study)
        assert set(found) == expected(study, numbers)
        assert len(topic.events()) == 30
        # Again, and the same study is no second one.
        assert router.post("/modalities/hub/store", json={"Resources": [resource], "Synchronous": True}).status_code == 200
        assert objects(admin_store, study) == found


def test_orthanc_sends_over_tls(doors: Doors, admin_store: S3ObjectStore, tmp_path: Path) -> None:
    own = doors.authority.issue("router.easton.example", file="orthanc")
    modality = {"AET": "REGIONALHUB", "Host": "127.0.0.1", "Port": doors.port, "UseDicomTls": True}
    tls = {
        "DicomTlsCertificate": str(own.certificate),
        "DicomTlsPrivateKey": str(own.key),
        "DicomTlsTrustedCertificates": str(doors.authority.file),
    }
    with orthanc(tmp_path, DicomAet="EASTON", DicomModalities={"hub": modality}, **tls) as router:
        names = [
            router.post("/instances", content=one.content).json()["ID"]
            for one in synthetic_series(PATIENT, study="orthanc-tls", instances=5)
        ]
        sent = router.post("/modalities/hub/store", json={"Resources": names, "Synchronous": True})
        assert sent.status_code == 200, sent.text
    assert set(objects(admin_store, "orthanc-tls", "easton")) == expected("orthanc-tls", range(1, 6))


def test_orthanc_loses_only_the_file_that_is_not_taken(
    receiver: ReceiverProcess, admin_store: S3ObjectStore, six: tuple[str, list[Path]], tmp_path: Path
) -> None:
    study, paths = six
    spoilt(paths[2], "private")
    modality = {"AET": "REGIONALHUB", "Host": "127.0.0.1", "Port": receiver.peer.port}
    with orthanc(tmp_path, DicomAet="NORTHGATE", DicomModalities={"hub": modality}) as router:
        names = [router.post("/instances", content=path.read_bytes()).json()["ID"] for path in paths]
        router.post("/modalities/hub/store", json={"Resources": names, "Synchronous": True, "Permissive": True})
    assert set(objects(admin_store, study)) == expected(study, [1, 2, 4, 5, 6])
