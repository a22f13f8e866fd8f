"""What a trust's own rules (`trusts.yaml`) hold back after it was taken in and acknowledged: see `hub_dicom.Trust`."""

from collections.abc import Iterator
from typing import Final

from hub_dicom import Trust

from hub_deidentification.acceptance import Refused, is_private
from hub_deidentification.encoding import DataSet, Instance, items_of
from hub_deidentification.text import text_of

_SOP_CLASS_UID: Final = 0x00080016
_MODALITY: Final = 0x00080060
_PATIENT_NAME: Final = 0x00100010
_PATIENT_ID: Final = 0x00100020
_OTHER_PATIENT_IDS: Final = 0x00101000
_OTHER_PATIENT_IDS_SEQUENCE: Final = 0x00101002


def check_patient(instance: Instance, trust: Trust) -> None:
    """Whether the instance is of a patient who exists. One of a test patient belongs to nobody, and contradicts nobody's images.

    Raises:
        Refused: it is of a test patient.
        Unparseable: its other patient IDs cannot be read.
    """
    rule = trust.test_patients
    if rule is not None and rule.match(_numbers(instance), [text_of(instance.root, _PATIENT_NAME, instance.root)]):
        raise Refused("test-patient")


def check_kind(instance: Instance, trust: Trust) -> None:
    """Whether the trust wants instances of this SOP class and modality. A private class has a reason of its own, elsewhere.

    Raises:
        Refused: it does not.
    """
    sop_class_uid = instance.value(_SOP_CLASS_UID)
    if is_private(sop_class_uid):
        return
    if sop_class_uid in trust.refuse_sop_classes or sop_class_uid in trust.quarantine_sop_classes:
        raise Refused("sop-class-not-wanted")
    if trust.modalities is not None and instance.value(_MODALITY).strip().upper() not in trust.modalities:
        raise Refused("modality-not-wanted")


def _numbers(instance: Instance) -> Iterator[str]:
    """Patient ID, and every other one that the instance names."""
    root = instance.root
    yield text_of(root, _PATIENT_ID, root)
    yield from text_of(root, _OTHER_PATIENT_IDS, root).split("\\")
    element = root.get(_OTHER_PATIENT_IDS_SEQUENCE)
    items: list[DataSet] = [] if element is None else items_of(element, little=instance.syntax.little)
    for item in items:
        yield text_of(item, _PATIENT_ID, root)
