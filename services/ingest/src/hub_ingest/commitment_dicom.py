"""Storage commitment in DICOM's terms: a request's Action Information, a report's Event Information (PS3.4 J.3)."""

import io
from typing import Any, Final

from hub_dicom import is_uid
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dsutils import decode

from hub_ingest.commitment_ledger import Reference, Result

PUSH_MODEL: Final = UID("1.2.840.10008.1.20.1")
PUSH_MODEL_INSTANCE: Final = UID("1.2.840.10008.1.20.1.1")
REQUEST_ACTION: Final = 1
COMPLETE: Final = 1
COMPLETE_WITH_FAILURES: Final = 2

# PS3.7 10.1.4.1.10 and C: what an N-ACTION is answered.
SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_INSTANCE: Final = 0x0112
INVALID_ARGUMENT: Final = 0x0115
NO_SUCH_ACTION: Final = 0x0123
NOT_AUTHORISED: Final = 0x0124
RESOURCE_LIMITATION: Final = 0x0213
ACTION_STATUSES: Final = (
    SUCCESS,
    PROCESSING_FAILURE,
    NO_SUCH_INSTANCE,
    INVALID_ARGUMENT,
    NO_SUCH_ACTION,
    NOT_AUTHORISED,
    RESOURCE_LIMITATION,
)


class InvalidRequest(ValueError):
    """The Action Information is not that of PS3.4 table J.3-1. The text says what is wrong and holds no value."""


def read_request(encoded: bytes, transfer_syntax: UID) -> tuple[str, tuple[Reference, ...]]:
    """Transaction UID and what is asked about.

    Raises:
        InvalidRequest: it is not what it should be.
    """
    try:
        data = decode(io.BytesIO(encoded), transfer_syntax.is_implicit_VR, transfer_syntax.is_little_endian, transfer_syntax.is_deflated)
        transaction_uid = str(data.get("TransactionUID", ""))
        references = tuple(_reference(item) for item in data.get("ReferencedSOPSequence", None) or ())
    except InvalidRequest:
        raise
    except Exception as error:  # pydicom decodes late, and raises whatever it meets
        raise InvalidRequest("Action Information cannot be parsed") from error
    if not is_uid(transaction_uid):
        raise InvalidRequest("Transaction UID is missing or not valid")
    if not references:
        raise InvalidRequest("Referenced SOP Sequence is missing or empty")
    return transaction_uid, references


def _reference(item: Any) -> Reference:  # noqa: ANN401 - pydicom has no types
    sop_class_uid, sop_instance_uid = str(item.get("ReferencedSOPClassUID", "")), str(item.get("ReferencedSOPInstanceUID", ""))
    if not is_uid(sop_class_uid) or not is_uid(sop_instance_uid):
        raise InvalidRequest("A reference lacks a valid class or instance UID")
    return Reference(sop_class_uid=sop_class_uid, sop_instance_uid=sop_instance_uid)


def report(result: Result) -> tuple[int, Dataset]:
    """Event Type ID and Event Information of a result."""
    information = Dataset()
    information.TransactionUID = result.transaction_uid
    if result.committed:
        information.ReferencedSOPSequence = [_item(one.sop_class_uid, one.sop_instance_uid) for one in result.committed]
    if not result.failed:
        return COMPLETE, information
    information.FailedSOPSequence = [_item(one.sop_class_uid, one.sop_instance_uid, one.reason) for one in result.failed]
    return COMPLETE_WITH_FAILURES, information


def _item(sop_class_uid: str, sop_instance_uid: str, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    if reason is not None:
        item.FailureReason = reason
    return item
