"""A sender that asks for storage commitment, and listens for reports."""

import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_role, evt
from support.senders import Peer

PUSH_MODEL = "1.2.840.10008.1.20.1"
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]


@dataclass(frozen=True)
class Report:
    """One N-EVENT-REPORT."""

    transaction_uid: str
    event_type: int
    committed: list[str]
    failed: dict[str, int]
    """SOP Instance UID to Failure Reason."""
    calling: str


@dataclass
class Inbox:
    """What came, and what to answer."""

    reports: list[Report] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    """Answers to the first reports; 0x0000 afterwards."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, event: Any) -> tuple[int, None]:
        data = event.event_information
        report = Report(
            str(data.TransactionUID),
            int(event.event_type),
            [str(item.ReferencedSOPInstanceUID) for item in data.get("ReferencedSOPSequence", [])],
            {str(item.ReferencedSOPInstanceUID): int(item.FailureReason) for item in data.get("FailedSOPSequence", [])},
            str(event.assoc.requestor.ae_title),
        )
        with self._lock:
            self.reports.append(report)
            return (self.statuses.pop(0) if self.statuses else 0x0000), None

    def of(self, transaction_uid: str) -> list[Report]:
        return [report for report in self.reports if report.transaction_uid == transaction_uid]


@contextmanager
def listening(port: int, *, ae_title: str = "NORTHGATE", accept_role: bool = True, tls: ssl.SSLContext | None = None) -> Iterator[Inbox]:
    """A sender's own SCP, which takes reports."""
    inbox = Inbox()
    ae = AE(ae_title=ae_title)
    ae.add_supported_context(PUSH_MODEL, SYNTAXES, scu_role=accept_role, scp_role=accept_role)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, inbox.take)], ssl_context=tls)
    try:
        yield inbox
    finally:
        server.shutdown()


@contextmanager
def asking(peer: Peer, *, contexts: Sequence[tuple[str, str]] = ()) -> Iterator[tuple[Any, Inbox]]:
    """An association that asks, and hears what comes on it."""
    inbox = Inbox()
    ae = AE(ae_title=peer.calling)
    ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = 10, 30, 60
    ae.add_requested_context(PUSH_MODEL, SYNTAXES)
    for abstract, transfer in dict.fromkeys(contexts):
        ae.add_requested_context(abstract, transfer)
    assoc = ae.associate(
        peer.host,
        peer.port,
        ae_title=peer.called,
        evt_handlers=[(evt.EVT_N_EVENT_REPORT, inbox.take)],
        ext_neg=[build_role(PUSH_MODEL, scu_role=True)],
    )
    assert assoc.is_established
    try:
        yield assoc, inbox
    finally:
        if assoc.is_established:
            assoc.release()


def request(references: Sequence[tuple[str, str]], transaction_uid: str | None = None) -> Dataset:
    """Action Information."""
    data = Dataset()
    data.TransactionUID = transaction_uid or generate_uid()
    data.ReferencedSOPSequence = []
    for sop_class_uid, sop_instance_uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class_uid
        item.ReferencedSOPInstanceUID = sop_instance_uid
        data.ReferencedSOPSequence.append(item)
    return data


def ask(assoc: Any, data: Dataset | None, *, action: int = 1, instance: str = PUSH_MODEL_INSTANCE) -> int:
    """The status of an N-ACTION."""
    status, _ = assoc.send_n_action(data, action, PUSH_MODEL, instance)
    return int(status.Status)
