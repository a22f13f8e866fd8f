"""What storage commitment (PS3.4 J) knows, all of it objects of the bucket `identifiable`, so that it outlives every process.

    announced/<trust>/<sop instance uid>/<sha256>       this content was announced: its key and SOP class
    commitments/<trust>/<id>.json                       a request that is not reported yet; durable before N-ACTION is answered
    commitments/<trust>/<id>.held                       its receiver keeps the association open and will report on it
    commitments/<trust>/<id>.released                   it does not any more: anybody may report
    commitments/<trust>/<id>.result                     the outcome, decided once: every try reports the same
    commitments/<trust>/<id>.attempt-0001               one try, claimed by a conditional PUT: nobody else makes this one
    commitments/<trust>/<id>.ended-0001                 it ended without the sender's acknowledgement
    commitments-done/<trust>/<id>.json                  how it ended

`id` is the SHA-256 of the Transaction UID; a request that uses a Transaction UID again gets one of its own behind it. No name but UIDs is written.
"""  # fmt: skip

import hashlib
import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Final, Literal

from hub_dicom import Trust, instance_key, is_uid, read_file_meta
from hub_dicom.part10 import NotPart10
from hub_dicom.storage import may_be_stored
from hub_events.types import InstanceReceived
from hub_objectstore import ObjectMissing, ObjectStore
from pydantic import BaseModel, ConfigDict, ValidationError

BUCKET: Final = "identifiable"
ANNOUNCED: Final = "announced"
OPEN: Final = "commitments"
DONE: Final = "commitments-done"

# PS3.3 C.14.1.1
PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_INSTANCE: Final = 0x0112
CLASS_CONFLICT: Final = 0x0119
CLASS_NOT_SUPPORTED: Final = 0x0122
DUPLICATE_TRANSACTION: Final = 0x0131
RESOURCE_LIMITATION: Final = 0x0213
FAILURE_REASONS: Final = (
    PROCESSING_FAILURE,
    NO_SUCH_INSTANCE,
    CLASS_CONFLICT,
    CLASS_NOT_SUPPORTED,
    DUPLICATE_TRANSACTION,
    RESOURCE_LIMITATION,
)

HOLD_SECONDS: Final = 10.0
"""A receiver that has not renewed its hold for so long is gone."""
LEASE_SECONDS: Final = 90.0
"""A try that has not ended after so long died with its process; longer than any try can take."""
_LONGEST_PAUSE: Final = 3600.0
_META_BYTES: Final = 2048
_LOOKUPS: Final = 8


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reference(_Record):
    """An instance that a sender asks about."""

    sop_class_uid: str
    sop_instance_uid: str


class Announced(_Record):
    """A content of an instance that was announced."""

    key: str
    size: int
    sop_class_uid: str


class Request(_Record):
    """One N-ACTION."""

    trust: str
    transaction_uid: str
    references: tuple[Reference, ...]
    requested: datetime
    duplicate: bool = False
    """Another request has this Transaction UID."""


class Failure(_Record):
    """An instance that is not committed, and why (PS3.3 C.14.1.1)."""

    sop_class_uid: str
    sop_instance_uid: str
    reason: int


class Result(_Record):
    """What the sender is told of a transaction."""

    transaction_uid: str
    committed: tuple[Reference, ...] = ()
    failed: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Transaction:
    """A request that is not reported yet, as a listing shows it."""

    trust: str
    id: str
    last_sign: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When its receiver last showed that it has it."""
    released: bool = False
    attempts: int = 0
    last_attempt: datetime | None = None
    last_ended: bool = False

    @property
    def prefix(self) -> str:
        """What the keys of its objects start with."""
        return f"{OPEN}/{self.trust}/{self.id}"

    def due(self, now: datetime, first_pause: float) -> bool:
        """Whether anybody may try now: its receiver is gone or has given it away, and the last try is over and its pause too."""
        if not self.released and (now - self.last_sign).total_seconds() < HOLD_SECONDS:
            return False
        if self.last_attempt is None:
            return True
        pause = min(_LONGEST_PAUSE, first_pause * 2.0 ** min(self.attempts - 1, 20)) if self.last_ended else LEASE_SECONDS
        return (now - self.last_attempt).total_seconds() >= pause


def announce(store: ObjectStore, data: InstanceReceived) -> bool:
    """Note that a content was announced; False where the event does not name an object of its own trust and instance.

    Saying it twice changes nothing.

    Raises:
        StoreUnavailable: the store is away.
    """
    reference = data.object
    try:
        key = instance_key(data.trust, data.study_instance_uid, data.series_instance_uid, data.sop_instance_uid, reference.sha256)
    except ValueError:
        return False
    if (reference.bucket, reference.key) != (BUCKET, key):
        return False
    sop_class_uid = data.sop_class_uid
    if sop_class_uid is None:  # a sweep does not look into objects
        try:
            sop_class_uid = read_file_meta(store.get_range(BUCKET, key, 0, _META_BYTES)).sop_class_uid
        except (ObjectMissing, NotPart10):
            return False
    entry = Announced(key=key, size=reference.size, sop_class_uid=sop_class_uid)
    store.put_if_absent(BUCKET, f"{ANNOUNCED}/{data.trust}/{data.sop_instance_uid}/{reference.sha256}", _bytes(entry))
    return True


def open_transaction(store: ObjectStore, trust: Trust, transaction_uid: str, references: tuple[Reference, ...]) -> Transaction:
    """Make a request durable. What it returns is reported some time, whatever dies.

    The very same request again, while the first one waits, is one: its sender did not get our answer. Any other use of its
    Transaction UID is a transaction of its own, all of whose instances fail with 0131.

    Raises:
        StoreUnavailable: the store is away; nothing is promised.
    """
    name = hashlib.sha256(transaction_uid.encode()).hexdigest()
    request = Request(trust=trust.name, transaction_uid=transaction_uid, references=references, requested=datetime.now(UTC))
    transaction = Transaction(trust.name, name)
    if store.stat(BUCKET, _done_key(transaction)) is None:
        if store.put_if_absent(BUCKET, f"{transaction.prefix}.json", _bytes(request)):
            return transaction
        first = load_request(store, transaction)
        if first is not None and first.references == references:
            return transaction
    again = Transaction(trust.name, f"{name}-{uuid.uuid4().hex[:12]}")
    store.put_if_absent(BUCKET, f"{again.prefix}.json", _bytes(request.model_copy(update={"duplicate": True})))
    return again


def load_request(store: ObjectStore, transaction: Transaction) -> Request | None:
    """What was asked, or None where it is reported meanwhile.

    Raises:
        StoreUnavailable: the store is away.
    """
    try:
        return Request.model_validate_json(store.get(BUCKET, f"{transaction.prefix}.json"))
    except ObjectMissing:
        return None


def hold(store: ObjectStore, transaction: Transaction) -> None:
    """Say that the receiver still has the association. Raises StoreUnavailable."""
    store.put(BUCKET, f"{transaction.prefix}.held", b"")


def release(store: ObjectStore, transaction: Transaction) -> None:
    """Say that it has not. Raises StoreUnavailable; then others find out after `HOLD_SECONDS`."""
    store.put_if_absent(BUCKET, f"{transaction.prefix}.released", b"")


def transactions(store: ObjectStore) -> Iterator[Transaction]:
    """Every request that is not reported yet. Raises StoreUnavailable."""
    named = ((info.key.removeprefix(f"{OPEN}/").partition("."), info) for info in store.list(BUCKET, f"{OPEN}/"))
    for place, group in groupby(named, key=lambda pair: pair[0][0]):
        trust, _, name = place.partition("/")
        there = {part[2]: info.last_modified for part, info in group}
        if "json" not in there:
            continue
        claimed = sorted(part for part in there if part.startswith("attempt-"))
        last = int(claimed[-1].removeprefix("attempt-")) if claimed else 0
        ended = there.get(f"ended-{last:04}")
        yield Transaction(
            trust,
            name,
            last_sign=max(there["json"], there.get("held", there["json"])),
            released="released" in there,
            attempts=last,
            last_attempt=ended or (there[claimed[-1]] if claimed else None),
            last_ended=ended is not None,
        )


def decide(store: ObjectStore, transaction: Transaction, request: Request, *, wait_seconds: float, maximum: int) -> Result | None:
    """The outcome of a transaction, decided once; None while something that it names has not come and may still come.

    Raises:
        StoreUnavailable: the store is away.
    """
    try:
        return Result.model_validate_json(store.get(BUCKET, f"{transaction.prefix}.result"))
    except ObjectMissing:
        pass
    late = (datetime.now(UTC) - request.requested).total_seconds() >= wait_seconds
    result = resolve(store, request, late=late, maximum=maximum)
    if result is None:
        return None
    if not store.put_if_absent(BUCKET, f"{transaction.prefix}.result", _bytes(result)):
        return Result.model_validate_json(store.get(BUCKET, f"{transaction.prefix}.result"))
    return result


def resolve(store: ObjectStore, request: Request, *, late: bool, maximum: int) -> Result | None:
    """What is durable and announced of what a request names; None where something is missing and it is not `late` yet.

    References beyond `maximum` are not looked up and fail with 0213.

    Raises:
        StoreUnavailable: the store is away.
    """
    if request.duplicate:
        return Result(
            transaction_uid=request.transaction_uid, failed=tuple(_failure(one, DUPLICATE_TRANSACTION) for one in request.references)
        )
    taken, beyond = request.references[:maximum], request.references[maximum:]
    with ThreadPoolExecutor(_LOOKUPS) as pool:
        reasons = list(pool.map(lambda one: _missing(store, request.trust, one), taken))
    if NO_SUCH_INSTANCE in reasons and not late:
        return None
    failed = [_failure(one, reason) for one, reason in zip(taken, reasons, strict=True) if reason is not None]
    return Result(
        transaction_uid=request.transaction_uid,
        committed=tuple(one for one, reason in zip(taken, reasons, strict=True) if reason is None),
        failed=(*failed, *(_failure(one, RESOURCE_LIMITATION) for one in beyond)),
    )


def claim(store: ObjectStore, transaction: Transaction) -> int | None:
    """Take the next try for this caller: its number; None where somebody else has it. Raises StoreUnavailable."""
    number = transaction.attempts + 1
    if not store.put_if_absent(BUCKET, f"{transaction.prefix}.attempt-{number:04}", uuid.uuid4().bytes):
        return None
    if is_done(store, transaction):
        # Whoever had this try before has reported and tidied up since the caller looked: the claim was free again. The end is noted
        # before anything is taken away, so looking after the claim cannot miss it.
        finish(store, transaction, "reported")
        return None
    return number


def end_attempt(store: ObjectStore, transaction: Transaction, number: int) -> None:
    """Say that a try is over and was not acknowledged, so that the next one need not wait for the lease. Raises StoreUnavailable."""
    store.put_if_absent(BUCKET, f"{transaction.prefix}.ended-{number:04}", b"")


def finish(store: ObjectStore, transaction: Transaction, state: Literal["reported", "given-up"]) -> None:
    """Note the end of a transaction, and take its other objects away. Doing it again completes it.

    Raises:
        StoreUnavailable: the store is away.
    """
    note = {"state": state, "ended": datetime.now(UTC).isoformat()}
    store.put_if_absent(BUCKET, _done_key(transaction), json.dumps(note).encode())
    store.delete(BUCKET, f"{transaction.prefix}.json")
    for info in list(store.list(BUCKET, f"{transaction.prefix}.")):
        store.delete(BUCKET, info.key)


def is_done(store: ObjectStore, transaction: Transaction) -> bool:
    """Whether its end is noted already. Raises StoreUnavailable."""
    return store.stat(BUCKET, _done_key(transaction)) is not None


def forget_done(store: ObjectStore, before: datetime) -> None:
    """Take away the notes of transactions that ended before a moment. Raises StoreUnavailable."""
    for info in list(store.list(BUCKET, f"{DONE}/")):
        if info.last_modified < before:
            store.delete(BUCKET, info.key)


def _missing(store: ObjectStore, trust: str, reference: Reference) -> int | None:
    """Why an instance is not committed, or None. What an announcement names must also be there."""
    if not may_be_stored(reference.sop_class_uid):
        return CLASS_NOT_SUPPORTED
    if not is_uid(reference.sop_instance_uid):
        return NO_SUCH_INSTANCE
    classes = set()
    for info in store.list(BUCKET, f"{ANNOUNCED}/{trust}/{reference.sop_instance_uid}/"):
        try:
            entry = Announced.model_validate_json(store.get(BUCKET, info.key))
        except ObjectMissing:
            continue
        except ValidationError:
            return PROCESSING_FAILURE
        there = store.stat(BUCKET, entry.key)
        if there is not None and there.size == entry.size:
            classes.add(entry.sop_class_uid)
    if not classes:
        return NO_SUCH_INSTANCE
    return None if reference.sop_class_uid in classes else CLASS_CONFLICT


def _failure(reference: Reference, reason: int) -> Failure:
    return Failure(sop_class_uid=reference.sop_class_uid, sop_instance_uid=reference.sop_instance_uid, reason=reason)


def _done_key(transaction: Transaction) -> str:
    return f"{DONE}/{transaction.trust}/{transaction.id}.json"


def _bytes(record: BaseModel) -> bytes:
    return record.model_dump_json().encode()
