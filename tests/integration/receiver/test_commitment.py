"""Storage commitment, with pynetdicom as the sender: what is promised is durable, and the report comes, once, whatever dies."""

import hashlib
import json
import ssl
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from hub_dicom import Trust, parse_instance_key
from hub_dicom.synthetic import SyntheticPatient, synthetic_series, synthetic_uid
from hub_dicom.trusts import CommitmentAddress
from hub_ingest.commitment import deliver
from hub_ingest.commitment_ledger import Reference, Result
from hub_ingest.receiver_tls import TlsFiles
from hub_objectstore import S3ObjectStore
from hub_parts import Parts
from hub_parts.ports import free_port
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from support.certificates import Authority
from support.commitment import PUSH_MODEL, SYNTAXES, Inbox, ask, asking, listening, request
from support.dicom_files import write_series
from support.orthanc import orthanc
from support.receiver_process import TRUSTS, ReceiverProcess, StartReceiver
from support.senders import association, send

BUCKET = "identifiable"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
PATIENT = SyntheticPatient("SYNTHETIC^COMMITMENT", "C-1")
WAIT = "4"


class CommitmentProcess(ReceiverProcess):
    """One `hub-commitment`."""

    module = "hub_ingest.commitment"


@dataclass
class Hub:
    """A receiver, hub-commitment, and where northgate takes reports."""

    receiver: ReceiverProcess
    commitment: CommitmentProcess
    store: S3ObjectStore
    port: int
    trusts: Path
    environment: dict[str, str]

    def sent(self, folder: Path, study: str, instances: int = 3) -> list[tuple[str, str]]:
        paths = write_series(folder, synthetic_series(PATIENT, study=study, instances=instances))
        assert {one.status for one in send(self.receiver.peer, paths)} == {0}
        return [(CT, synthetic_uid(study, 1, number + 1)) for number in range(instances)]

    def open(self, *transaction_uids: str) -> list[str]:
        """What is left of transactions."""
        names = {hashlib.sha256(uid.encode()).hexdigest() for uid in transaction_uids}
        keys = [info.key for info in self.store.list(BUCKET, "commitments/")]
        return [key for key in keys if key.split("/")[2].split(".")[0].split("-")[0] in names]


@pytest.fixture(scope="module")
def hub(parts: Parts, admin_store: S3ObjectStore, start_receiver: StartReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("commitment")
    port = free_port()
    trusts = folder / "trusts.yaml"
    address = f"    commitment: {{host: 127.0.0.1, port: {port}, ae_title: NORTHGATE}}\n"
    trusts.write_text(TRUSTS.replace("    assigning_authority: RNG\n", f"    assigning_authority: RNG\n{address}"))
    settings = {"HUB_TRUSTS_FILE": str(trusts), "HUB_COMMITMENT_WAIT_SECONDS": WAIT, "HUB_COMMITMENT_REFERENCES": "50"}
    environment = (
        parts.environment("commitment")
        | settings
        | {
            "HUB_COMMITMENT_RETRY_SECONDS": "1",
            "HUB_DATA_FOLDER": str(folder),
            "HUB_LOG_STRICT": "true",
        }
    )
    with start_receiver(**settings) as receiver:
        commitment = CommitmentProcess(environment)
        try:
            commitment.wait_until(lambda: "started" in commitment.events)
            commitment.health = f"http://127.0.0.1:{commitment.line('started')['port']}"
            yield Hub(receiver, commitment, admin_store, port, trusts, environment)
        finally:
            commitment.stop()


def _wait(what: Inbox, transaction_uid: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what.of(transaction_uid):
        assert time.monotonic() < deadline, f"no report within {seconds} s"
        time.sleep(0.05)


def test_the_report_comes_on_the_association_that_stays_open(hub: Hub, tmp_path: Path) -> None:
    references = hub.sent(tmp_path, "same")
    data = request(references)
    with listening(hub.port) as elsewhere, asking(hub.receiver.peer) as (assoc, inbox):
        assert ask(assoc, data) == 0x0000
        _wait(inbox, data.TransactionUID)
        assert assoc.is_established
        hub.receiver.wait_until(lambda: not hub.open(data.TransactionUID))
        time.sleep(3)
        (report,) = inbox.reports
        assert (report.event_type, report.failed, elsewhere.reports) == (1, {}, [])
        assert report.committed == [uid for _, uid in references]


def test_who_hangs_up_gets_it_at_its_own_address(hub: Hub, tmp_path: Path) -> None:
    references = hub.sent(tmp_path, "new")
    data = request(references)
    with listening(hub.port) as inbox:
        with asking(hub.receiver.peer) as (assoc, _):
            assert ask(assoc, data) == 0x0000
        _wait(inbox, data.TransactionUID)
        hub.receiver.wait_until(lambda: not hub.open(data.TransactionUID))
        time.sleep(2)
        (report,) = inbox.reports
        assert (report.event_type, report.failed, report.calling) == (1, {}, "REGIONALHUB")
        assert report.committed == [uid for _, uid in references]


def test_every_failure_reason_by_what_is_true(hub: Hub, tmp_path: Path) -> None:
    (good, moved), unknown = hub.sent(tmp_path, "reasons", 2), generate_uid()
    gone = moved[1]
    for info in hub.store.list(BUCKET, f"northgate/{synthetic_uid('reasons')}/"):
        if parse_instance_key(info.key).sop_instance_uid == gone:
            hub.store.delete(BUCKET, info.key)  # announced, and not durable any more
    other = generate_uid()
    data = request([good, (CT, unknown), (MR, good[1]), ("1.2.840.10008.1.1", other), (CT, gone)])
    with asking(hub.receiver.peer) as (assoc, inbox):
        start = time.monotonic()
        assert ask(assoc, data) == 0x0000
        assert time.monotonic() - start < 2, "the answer does not wait for what is missing"
        _wait(inbox, data.TransactionUID)
        assert time.monotonic() - start >= float(WAIT) - 0.1
        (report,) = inbox.reports
        assert (report.event_type, report.committed) == (2, [good[1]])
        assert report.failed == {unknown: 0x0112, good[1]: 0x0119, other: 0x0122, gone: 0x0112}


def test_what_comes_while_it_is_waited_for_is_committed(hub: Hub, tmp_path: Path) -> None:
    data = request([(CT, synthetic_uid("waited", 1, number)) for number in (1, 2)])
    with asking(hub.receiver.peer) as (assoc, inbox):
        assert ask(assoc, data) == 0x0000
        hub.sent(tmp_path, "waited", 2)
        _wait(inbox, data.TransactionUID)
        assert [report.event_type for report in inbox.reports] == [1]


def test_another_trusts_instances_are_not_there(hub: Hub, tmp_path: Path) -> None:
    references = hub.sent(tmp_path, "foreign", 1)
    data = request(references)
    with asking(hub.receiver.as_caller("SOUTHMEAD")) as (assoc, inbox):
        assert ask(assoc, data) == 0x0000
        _wait(inbox, data.TransactionUID)
        assert inbox.reports[0].failed == {references[0][1]: 0x0112}


def test_a_transaction_uid_is_used_once(hub: Hub, tmp_path: Path) -> None:
    first, second = hub.sent(tmp_path, "twice", 2)
    data = request([first])
    uid = str(data.TransactionUID)
    with asking(hub.receiver.peer) as (assoc, inbox):
        assert ask(assoc, data) == 0x0000
        assert ask(assoc, request([second], uid)) == 0x0000
        hub.receiver.wait_until(lambda: len(inbox.of(uid)) == 2)
        assert sorted((report.event_type, *report.failed.values()) for report in inbox.reports) == [(1,), (2, 0x0131)]
        assert ask(assoc, data) == 0x0000  # the very same, after its report
        hub.receiver.wait_until(lambda: len(inbox.of(uid)) == 3)
        assert inbox.reports[-1].failed == {first[1]: 0x0131}


def test_the_same_request_again_before_its_report_is_one_transaction(hub: Hub, tmp_path: Path) -> None:
    data = request([(CT, synthetic_uid("again", 1, 1))])
    with asking(hub.receiver.peer) as (assoc, inbox):
        assert [ask(assoc, data), ask(assoc, data)] == [0, 0]
        hub.sent(tmp_path, "again", 1)
        _wait(inbox, data.TransactionUID)
        time.sleep(2)
        assert [report.event_type for report in inbox.reports] == [1]


@pytest.mark.parametrize(
    ("kind", "status"), [("action", 0x0123), ("instance", 0x0112), ("nothing", 0x0115), ("no uid", 0x0115), ("no references", 0x0115)]
)
def test_a_request_that_makes_no_sense_is_refused_at_once(hub: Hub, kind: str, status: int) -> None:
    data: Dataset | None = request([(CT, generate_uid())])
    assert data is not None
    match kind:
        case "no uid":
            del data.TransactionUID
        case "no references":
            data.ReferencedSOPSequence = []
        case "nothing":
            data = None
    with asking(hub.receiver.peer) as (assoc, _):
        action, instance = (2 if kind == "action" else 1), ("1.2.3" if kind == "instance" else "1.2.840.10008.1.20.1.1")
        assert ask(assoc, data, action=action, instance=instance) == status
        assert assoc.is_established
    assert data is None or "TransactionUID" not in data or hub.open(data.TransactionUID) == []


def test_more_references_than_the_limit_fail_alone(hub: Hub, tmp_path: Path) -> None:
    good = hub.sent(tmp_path, "many", 1)
    data = request([*good * 50, (CT, "1.2.3.4")])
    with asking(hub.receiver.peer) as (assoc, inbox):
        assert ask(assoc, data) == 0x0000
        _wait(inbox, data.TransactionUID, seconds=20)
        assert inbox.reports[0].failed == {"1.2.3.4": 0x0213}


def test_a_sender_that_does_not_take_the_report_is_tried_again(hub: Hub, tmp_path: Path) -> None:
    data = request(hub.sent(tmp_path, "again-and-again", 1))
    with asking(hub.receiver.peer) as (assoc, _):
        assert ask(assoc, data) == 0x0000
    hub.receiver.wait_until(lambda: hub.commitment.metric("hub_commitment_attempts_failed_total") >= 1)
    with listening(hub.port) as inbox:
        inbox.statuses = [0x0110]
        hub.receiver.wait_until(lambda: len(inbox.of(data.TransactionUID)) == 2, seconds=40)
        hub.receiver.wait_until(lambda: not hub.open(data.TransactionUID))
    assert {line.get("reason") for line in hub.commitment.lines} >= {"unreachable", "status-0110"}


def test_a_receiver_killed_between_request_and_report(hub: Hub, start_receiver: StartReceiver, tmp_path: Path) -> None:
    references = hub.sent(tmp_path, "killed", 2)
    data = request(references)
    with listening(hub.port) as inbox:
        with start_receiver(HUB_TRUSTS_FILE=str(hub.trusts), HUB_COMMITMENT_WAIT_SECONDS=WAIT) as victim, asking(victim.peer) as (assoc, _):
            assert ask(assoc, data) == 0x0000
            victim.process.kill()
            victim.process.wait()
        _wait(inbox, data.TransactionUID, seconds=40)
        hub.receiver.wait_until(lambda: not hub.open(data.TransactionUID))
        time.sleep(3)
        (report,) = inbox.of(data.TransactionUID)
        assert report.committed == [uid for _, uid in references]


def test_several_reporters_report_once(hub: Hub, tmp_path: Path) -> None:
    references = hub.sent(tmp_path, "several", 1)
    others = [CommitmentProcess(hub.environment | {"HUB_REPLICA": str(number)}) for number in (1, 2)]
    try:
        for other in others:
            other.wait_until(lambda other=other: "started" in other.events)  # type: ignore[misc]  # bound at once
        asked = []
        with listening(hub.port) as inbox:
            for _ in range(20):
                data = request(references)
                asked.append(str(data.TransactionUID))
                with asking(hub.receiver.peer) as (assoc, _own):
                    assert ask(assoc, data) == 0x0000
            for uid in asked:
                _wait(inbox, uid, seconds=60)
            hub.receiver.wait_until(lambda: not hub.open(*asked))
            assert sorted(report.transaction_uid for report in inbox.reports) == sorted(asked)
    finally:
        for other in others:
            other.stop()


def test_images_and_reports_share_an_association(hub: Hub, tmp_path: Path) -> None:
    paths = write_series(tmp_path, synthetic_series(PATIENT, study="shared-association", instances=40))
    data = request([(CT, synthetic_uid("shared-association", 1, 1))])
    with asking(hub.receiver.peer, contexts=[(CT, SYNTAXES[0])]) as (assoc, inbox):
        assert ask(assoc, data) == 0x0000
        for path in paths:
            assert assoc.send_c_store(path).Status == 0x0000
            time.sleep(0.02)
        _wait(inbox, data.TransactionUID)
        assert [report.event_type for report in inbox.reports] == [1]


def test_a_report_goes_over_mutual_tls_to_who_proves_itself(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    router, hub_certificate = authority.issue("router.example"), authority.issue("hub.example")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(router.certificate, router.key)
    port = free_port()
    address = CommitmentAddress(host="127.0.0.1", port=port, ae_title="NORTHGATE", tls=True)
    trust = Trust(name="northgate", ae_titles=("NORTHGATE",), addresses=("127.0.0.1/32",), assigning_authority="RNG", commitment=address)
    result = Result(transaction_uid=generate_uid(), committed=(Reference(sop_class_uid=CT, sop_instance_uid="1.2.3"),))
    with listening(port, tls=context) as inbox:
        foreign = TlsFiles(hub_certificate.certificate, hub_certificate.key, other.file)
        assert deliver(trust, result, calling="REGIONALHUB", tls=foreign) == "unreachable"
        files = TlsFiles(hub_certificate.certificate, hub_certificate.key, authority.file)
        assert deliver(trust, result, calling="REGIONALHUB", tls=files) == ""
        assert [report.committed for report in inbox.reports] == [["1.2.3"]]
        broken = TlsFiles(hub_certificate.certificate, router.key, authority.file)
        assert deliver(trust, result, calling="REGIONALHUB", tls=broken) == "certificates"


def test_verification_goes_on_without_it(hub: Hub) -> None:
    with association(hub.receiver.peer, [(PUSH_MODEL, SYNTAXES[0])]) as assoc:
        assert [context.abstract_syntax for context in assoc.accepted_contexts] == [PUSH_MODEL]


def _router(folder: Path, hub_port: int, dicom_port: int) -> AbstractContextManager[httpx.Client]:
    """Orthanc as northgate's router, with a port where it takes reports."""
    hub = {"hub": ["REGIONALHUB", "127.0.0.1", hub_port]}
    return orthanc(folder, DicomServerEnabled=True, DicomPort=dicom_port, DicomAet="NORTHGATE", DicomModalities=hub)


def _outcome(router: httpx.Client, place: str, seconds: float = 40) -> dict[str, object]:
    deadline = time.monotonic() + seconds
    while (answer := router.get(place).json())["Status"] == "Pending":
        assert time.monotonic() < deadline, f"no report within {seconds} s"
        time.sleep(0.1)
    return dict(answer)


@pytest.mark.peers
def test_orthanc_asks_and_is_told(hub: Hub, tmp_path: Path) -> None:
    with _router(tmp_path, hub.receiver.peer.port, hub.port) as router:
        contents = [one.content for one in synthetic_series(PATIENT, study="orthanc-commitment", instances=5)]
        names = [router.post("/instances", content=content).json()["ID"] for content in contents]
        assert router.post("/modalities/hub/store", json={"Resources": names}).status_code == 200
        place = router.post("/modalities/hub/storage-commitment", json={"Resources": names}).json()["Path"]
        outcome = _outcome(router, place)
        assert outcome["Status"] == "Success", outcome
        missing = router.post("/modalities/hub/storage-commitment", json={"DicomInstances": [[CT, generate_uid()]]}).json()["Path"]
        outcome = _outcome(router, missing)
        assert outcome["Status"] == "Failure"
        assert "was not available" in json.dumps(outcome)


@pytest.mark.peers
def test_orthanc_is_told_although_the_receiver_was_killed(hub: Hub, start_receiver: StartReceiver, tmp_path: Path) -> None:
    with (
        start_receiver(HUB_TRUSTS_FILE=str(hub.trusts), HUB_COMMITMENT_WAIT_SECONDS="30") as victim,
        _router(tmp_path, victim.peer.port, hub.port) as router,
    ):
        contents = [one.content for one in synthetic_series(PATIENT, study="orthanc-killed", instances=2)]
        first, second = (router.post("/instances", content=content).json()["ID"] for content in contents)
        assert router.post("/modalities/hub/store", json={"Resources": [first]}).status_code == 200
        # What is not there yet keeps the report back until the receiver is dead.
        place = router.post("/modalities/hub/storage-commitment", json={"Resources": [first, second]}).json()["Path"]
        victim.process.kill()
        victim.process.wait()
        assert router.get(place).json()["Status"] == "Pending"
        hub.sent(tmp_path / "files", "orthanc-killed", 2)
        outcome = _outcome(router, place)
        assert outcome["Status"] == "Success", outcome
