"""The ledger of storage commitment on the memory store: who claims, when it is due, what is true."""

import hashlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hub_dicom import Trust, file_meta, instance_key
from hub_events.types import InstanceReceived, ObjectReference
from hub_ingest import commitment_ledger as ledger
from hub_ingest.commitment_dicom import InvalidRequest, read_request, report
from hub_ingest.commitment_ledger import BUCKET, Reference, Request, Result, Transaction
from hub_objectstore import MemoryObjectStore
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from support.commitment import request

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
TRUST = Trust(name="northgate", ae_titles=("NORTHGATE",), addresses=("127.0.0.1/32",), assigning_authority="RNG")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ONE = (Reference(sop_class_uid=CT, sop_instance_uid="1.2.3.4"),)


def _stored(
    store: MemoryObjectStore, *, instance: str = "1.2.3.4", sop_class: str | None = CT, trust: str = "northgate"
) -> InstanceReceived:
    content = file_meta(sop_class or CT, instance, "1.2.840.10008.1.2.1")
    sha256 = hashlib.sha256(content).hexdigest()
    key = instance_key(trust, "1.2", "1.2.3", instance, sha256)
    store.put(BUCKET, key, content)
    return InstanceReceived(
        trust=trust,
        study_instance_uid="1.2",
        series_instance_uid="1.2.3",
        sop_instance_uid=instance,
        sop_class_uid=sop_class,
        object=ObjectReference(bucket=BUCKET, key=key, sha256=sha256, size=len(content)),
        origin="c-store",
    )


def _resolve(
    store: MemoryObjectStore, *references: tuple[str, str], trust: str = "northgate", late: bool = True, maximum: int = 10
) -> Result | None:
    asked = Request(
        trust=trust,
        transaction_uid="1.2.9",
        references=tuple(Reference(sop_class_uid=one, sop_instance_uid=other) for one, other in references),
        requested=NOW,
    )
    return ledger.resolve(store, asked, late=late, maximum=maximum)


def _reasons(result: Result | None) -> list[int]:
    assert result is not None
    return [failure.reason for failure in result.failed]


def test_stored_is_not_enough_it_must_be_announced_and_announced_is_not_enough_it_must_be_stored() -> None:
    store = MemoryObjectStore()
    data = _stored(store)
    assert _reasons(_resolve(store, (CT, "1.2.3.4"))) == [0x0112]
    assert ledger.announce(store, data)
    assert _reasons(_resolve(store, (CT, "1.2.3.4"))) == []
    store.put(BUCKET, data.object.key, b"cut")
    assert _reasons(_resolve(store, (CT, "1.2.3.4"))) == [0x0112]
    store.delete(BUCKET, data.object.key)
    assert _reasons(_resolve(store, (CT, "1.2.3.4"))) == [0x0112]


def test_reasons() -> None:
    store = MemoryObjectStore()
    assert ledger.announce(store, _stored(store))
    assert _reasons(_resolve(store, (MR, "1.2.3.4"))) == [0x0119]
    assert _reasons(_resolve(store, ("1.2.840.10008.1.1", "1.2.3.4"))) == [0x0122]
    assert _reasons(_resolve(store, (CT, "1.2.3.4"), trust="southmead")) == [0x0112]
    assert _reasons(_resolve(store, (CT, "1.2.3.4"), (CT, "1.2.3.4"), maximum=1)) == [0x0213]
    assert _resolve(store, (CT, "1.2.3.5"), late=False) is None
    store.put(BUCKET, "announced/northgate/1.2.3.6/x", b"{}")
    assert _reasons(_resolve(store, (CT, "1.2.3.6"), late=False)) == [0x0110]


def test_a_sweeps_announcement_has_its_class_from_the_object() -> None:
    store = MemoryObjectStore()
    assert ledger.announce(store, _stored(store, sop_class=None))
    assert _reasons(_resolve(store, (CT, "1.2.3.4"))) == []


def test_an_event_that_names_another_trusts_object_is_not_noted() -> None:
    store = MemoryObjectStore()
    data = _stored(store)
    assert not ledger.announce(store, data.model_copy(update={"trust": "southmead"}))
    assert not ledger.announce(store, data.model_copy(update={"sop_instance_uid": "1.2.3.5"}))
    assert not ledger.announce(store, data.model_copy(update={"object": data.object.model_copy(update={"bucket": "research"})}))
    assert list(store.list(BUCKET, "announced/")) == []


def test_a_try_is_claimed_once_and_never_after_the_end() -> None:
    store = MemoryObjectStore()
    transaction = ledger.open_transaction(store, TRUST, "1.2.9", ONE)
    assert ledger.claim(store, transaction) == 1
    assert ledger.claim(store, transaction) is None
    ledger.finish(store, transaction, "reported")
    assert ledger.claim(store, transaction) is None
    assert [info.key for info in store.list(BUCKET, "commitments/")] == []


def test_what_was_decided_stays() -> None:
    store = MemoryObjectStore()
    transaction = ledger.open_transaction(store, TRUST, "1.2.9", ONE)
    asked = ledger.load_request(store, transaction)
    assert asked is not None
    assert ledger.decide(store, transaction, asked, wait_seconds=60, maximum=10) is None
    first = ledger.decide(store, transaction, asked, wait_seconds=0, maximum=10)
    ledger.announce(store, _stored(store))
    assert ledger.decide(store, transaction, asked, wait_seconds=0, maximum=10) == first
    assert _reasons(first) == [0x0112]


def test_the_use_of_a_transaction_uid() -> None:
    store = MemoryObjectStore()
    first = ledger.open_transaction(store, TRUST, "1.2.9", ONE)
    assert ledger.open_transaction(store, TRUST, "1.2.9", ONE).id == first.id
    other = ledger.open_transaction(store, TRUST, "1.2.9", (*ONE, *ONE))
    assert other.id != first.id
    asked = ledger.load_request(store, other)
    assert asked is not None
    assert _reasons(ledger.resolve(store, asked, late=False, maximum=10)) == [0x0131, 0x0131]
    ledger.finish(store, first, "reported")
    again = ledger.load_request(store, ledger.open_transaction(store, TRUST, "1.2.9", ONE))
    assert again is not None
    assert again.duplicate
    elsewhere = TRUST.model_copy(update={"name": "southmead"})
    fresh = ledger.load_request(store, ledger.open_transaction(store, elsewhere, "1.2.9", ONE))
    assert fresh is not None
    assert not fresh.duplicate


def test_a_listing_shows_where_each_transaction_stands() -> None:
    store = MemoryObjectStore()
    transaction = ledger.open_transaction(store, TRUST, "1.2.9", ONE)
    (seen,) = ledger.transactions(store)
    assert (seen.id, seen.trust, seen.released, seen.attempts) == (transaction.id, "northgate", False, 0)
    ledger.hold(store, transaction)
    ledger.release(store, transaction)
    assert ledger.claim(store, transaction) == 1
    (seen,) = ledger.transactions(store)
    assert (seen.released, seen.attempts, seen.last_ended) == (True, 1, False)
    ledger.end_attempt(store, seen, 1)
    (seen,) = ledger.transactions(store)
    assert (seen.attempts, seen.last_ended) == (1, True)
    assert ledger.claim(store, seen) == 2


@pytest.mark.parametrize(
    ("transaction", "after", "due"),
    [
        (Transaction("t", "x", NOW), 9.9, False),  # its receiver has it
        (Transaction("t", "x", NOW), 10.1, True),  # its receiver is gone
        (Transaction("t", "x", NOW, released=True), 0, True),
        (Transaction("t", "x", NOW, released=True, attempts=1, last_attempt=NOW), 89, False),  # somebody tries
        (Transaction("t", "x", NOW, released=True, attempts=1, last_attempt=NOW), 91, True),  # who tried is dead
        (Transaction("t", "x", NOW, released=True, attempts=1, last_attempt=NOW, last_ended=True), 4.9, False),
        (Transaction("t", "x", NOW, released=True, attempts=1, last_attempt=NOW, last_ended=True), 5.1, True),
        (Transaction("t", "x", NOW, released=True, attempts=3, last_attempt=NOW, last_ended=True), 19, False),
        (Transaction("t", "x", NOW, released=True, attempts=3, last_attempt=NOW, last_ended=True), 21, True),
        (Transaction("t", "x", NOW, released=True, attempts=500, last_attempt=NOW, last_ended=True), 3599, False),
        (Transaction("t", "x", NOW, released=True, attempts=500, last_attempt=NOW, last_ended=True), 3601, True),
    ],
)
def test_when_others_may_try(transaction: Transaction, after: float, due: bool) -> None:
    assert transaction.due(NOW + timedelta(seconds=after), 5) is due


def test_nothing_but_uids_is_kept() -> None:
    store = MemoryObjectStore()
    transaction = ledger.open_transaction(store, TRUST, "1.2.9", ONE)
    asked = ledger.load_request(store, transaction)
    assert asked is not None
    assert set(asked.model_dump()) == {"trust", "transaction_uid", "references", "requested", "duplicate"}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_request_is_read(syntax: object) -> None:
    from pynetdicom.dsutils import encode  # noqa: PLC0415 - only here

    encoded = encode(request([(CT, "1.2.3.4")], "1.2.9"), syntax == ImplicitVRLittleEndian, True)
    assert encoded is not None
    assert read_request(encoded, syntax) == ("1.2.9", ONE)  # type: ignore[arg-type]  # a parameter of pytest
    for cut in range(len(encoded)):
        with suppress(InvalidRequest):  # nothing else comes out, whatever comes in
            read_request(encoded[:cut], syntax)  # type: ignore[arg-type]  # a parameter of pytest


def test_a_report_with_and_without_failures() -> None:
    complete, data = report(Result(transaction_uid="1.2.9", committed=ONE))
    assert (complete, "FailedSOPSequence" in data) == (1, False)
    failure = ledger.Failure(sop_class_uid=CT, sop_instance_uid="1.2.3.5", reason=0x0112)
    failed, data = report(Result(transaction_uid="1.2.9", failed=(failure,)))
    assert (failed, "ReferencedSOPSequence" in data, data.FailedSOPSequence[0].FailureReason) == (2, False, 0x0112)


def test_what_ended_long_ago_is_forgotten_and_nothing_else() -> None:
    store = MemoryObjectStore()
    old, fresh = (ledger.open_transaction(store, TRUST, uid, ONE) for uid in ("1.2.5", "1.2.6"))
    ledger.finish(store, old, "reported")
    ledger.forget_done(store, datetime.now(UTC) - timedelta(seconds=60))
    assert ledger.is_done(store, old)
    ledger.forget_done(store, datetime.now(UTC) + timedelta(seconds=1))
    assert not ledger.is_done(store, old)
    assert ledger.load_request(store, fresh) is not None
