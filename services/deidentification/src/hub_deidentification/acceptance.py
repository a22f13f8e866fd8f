"""Which instances this stage can de-identify safely. The others are held back with a reason code, never dropped."""

import re
from typing import Final

from hub_dicom import is_uid

from hub_deidentification.dictionary import is_registered_uid
from hub_deidentification.encoding import NATIVE, PIXEL_DATA, Instance, file_meta_of
from hub_deidentification.profile import Profile

REASONS: Final[dict[str, str]] = {
    "cannot-be-parsed": "The bytes are not what their transfer syntax says.",
    "transfer-syntax-not-handled": "A transfer syntax that DICOM does not register for stored images, or one whose pixels are elsewhere.",
    "incomplete-instance": "SOP Class, Study, Series or SOP Instance UID is missing or no UID.",
    "contradicts-manifest": "The UIDs within the instance are not those under which it was received.",
    "dicomdir": "A directory of a medium: it lists patients and is no image.",
    "private-sop-class": "A SOP class that DICOM does not register: nobody can say what is in it.",
    "sop-class-not-wanted": "A SOP class that the trust's rules hold back.",
    "modality-not-wanted": "A modality that is not among those the trust's rules want.",
    "test-patient": "A patient who does not exist, by the trust's patterns of names and numbers.",
    "sop-class-not-handled": "A SOP class that the profile does not accept.",
    "structured-report": "A structured report: its text needs cleaning that does not exist yet.",
    "encapsulated-document": "A document (PDF, CDA, model) inside DICOM: its content cannot be cleaned.",
    "secondary-capture": "A secondary capture: screens and scanned papers, text in the pixels is the rule.",
    "burned-in-annotation": "Burned In Annotation is YES.",
    "burned-in-risk": "An image of a kind whose pixels customarily carry text: ultrasound, photography, endoscopy, screens, colour images, scans.",
    "embedded-overlay": "An overlay in unused bits of the pixels: it can be text, and pixels are passed on as they are.",
    "pixel-data-length": "Pixel data that is longer or shorter than rows, columns, frames and bits say, or no sequence of fragments.",
    "no-patient-id": "No Patient ID and no valid national number: there is no subject to file it under.",
    "conflicting-patients": "Instances of one study, or numbers in one instance, that name different patients: the whole study is held back.",
    "variant-conflict": "Other pixels or elements under the UID of an instance that was received before: the first one is used.",
}
"""Every reason code of this stage, for people."""

_MEDIA_STORAGE_DIRECTORY: Final = "1.2.840.10008.1.3.10"
_SOP_CLASS_UID: Final = 0x00080016
_SOP_INSTANCE_UID: Final = 0x00080018
_STUDY_INSTANCE_UID: Final = 0x0020000D
_SERIES_INSTANCE_UID: Final = 0x0020000E
_IMAGE_TYPE: Final = 0x00080008
_MODALITY: Final = 0x00080060
_CONVERSION_TYPE: Final = 0x00080064
_SAMPLES_PER_PIXEL: Final = 0x00280002
_PHOTOMETRIC_INTERPRETATION: Final = 0x00280004
_NUMBER_OF_FRAMES: Final = 0x00280008
_ROWS: Final = 0x00280010
_COLUMNS: Final = 0x00280011
_BITS_ALLOCATED: Final = 0x00280100
_BURNED_IN_ANNOTATION: Final = 0x00280301

_STORAGE_ROOT: Final = "1.2.840.10008.5.1.4.1.1."
_ENCAPSULATED: Final = re.compile(r"1\.2\.840\.10008\.1\.2\.(4\.[0-9]+(\.1)?|5|1\.98|8\.1)")
_ELSEWHERE: Final = frozenset({f"1.2.840.10008.1.2.4.{number}" for number in (94, 95, 204, 205)})  # JPIP: the pixels stay at the sender


class Refused(Exception):
    """The instance is held back for `reason`, a key of `REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason


def check_file(file: bytes) -> None:
    """Whether the file's data set can be read at all, by what its file meta information says.

    Raises:
        Refused: it cannot.
        Unparseable: there is no usable file meta information.
    """
    meta = file_meta_of(file)
    if meta.sop_class_uid == _MEDIA_STORAGE_DIRECTORY:
        raise Refused("dicomdir")
    uid = meta.transfer_syntax_uid
    if uid not in NATIVE and (uid in _ELSEWHERE or not _ENCAPSULATED.fullmatch(uid)):
        raise Refused("transfer-syntax-not-handled")


def is_private(uid: str) -> bool:
    """Whether DICOM registers no such SOP class; one of its root for storage classes can be newer than what is known here."""
    return is_uid(uid) and not is_registered_uid(uid) and not uid.startswith(_STORAGE_ROOT)


def check(instance: Instance, profile: Profile) -> None:
    """Whether the instance can be de-identified safely under the profile.

    Raises:
        Refused: it cannot.
    """
    if not is_uid(instance.value(_SOP_CLASS_UID)):
        raise Refused("incomplete-instance")
    _check_sop_class(instance.value(_SOP_CLASS_UID), profile)
    if not all(is_uid(instance.value(tag)) for tag in (_SOP_INSTANCE_UID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID)):
        raise Refused("incomplete-instance")
    _check_burned_in(instance, profile)
    _check_overlays(instance)
    _check_pixels(instance)


def check_uids(instance: Instance, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> None:
    """Whether the instance is the one that the manifest names: its pseudonyms are made from what it says itself.

    Raises:
        Refused: it says something else.
    """
    said = tuple(instance.value(tag) for tag in (_STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID, _SOP_INSTANCE_UID))
    if said != (study_instance_uid, series_instance_uid, sop_instance_uid):
        raise Refused("contradicts-manifest")


def _check_sop_class(uid: str, profile: Profile) -> None:
    if uid in profile.accepted:
        return
    matches = [
        (len(pattern), reason)
        for reason, patterns in profile.content.hold_back.items()
        for pattern in patterns
        if uid == pattern or (pattern.endswith(".") and uid.startswith(pattern))
    ]
    if matches:
        raise Refused(max(matches)[1])
    raise Refused("private-sop-class" if is_private(uid) else "sop-class-not-handled")


def _check_burned_in(instance: Instance, profile: Profile) -> None:
    risk = profile.content.burned_in_risk
    if instance.value(_BURNED_IN_ANNOTATION).strip().upper() == "YES":
        raise Refused("burned-in-annotation")
    image_type = instance.value(_IMAGE_TYPE).upper()
    if (
        instance.value(_MODALITY).strip().upper() in risk.modalities
        or any(word in image_type for word in risk.image_type_words)
        or instance.value(_PHOTOMETRIC_INTERPRETATION).strip().upper() in risk.colours
        or (risk.converted and instance.value(_CONVERSION_TYPE).strip())
    ):
        raise Refused("burned-in-risk")


def _check_overlays(instance: Instance) -> None:
    for group in range(0x6000, 0x6020, 2):
        has_plane = any(group << 16 | number in instance.root for number in (0x0010, 0x0011, 0x0100, 0x0102))
        if has_plane and group << 16 | 0x3000 not in instance.root:
            raise Refused("embedded-overlay")


def _check_pixels(instance: Instance) -> None:
    for tag in PIXEL_DATA:
        element = instance.root.get(tag)
        if element is None:
            continue
        if element.items is not None or element.encapsulated != instance.syntax.encapsulated:
            raise Refused("pixel-data-length")
        if not element.encapsulated and not _has_its_length(instance, tag, len(element.value)):
            raise Refused("pixel-data-length")


def _has_its_length(instance: Instance, tag: int, length: int) -> bool:
    rows, columns = instance.number(_ROWS), instance.number(_COLUMNS)
    bits = {0x7FE00008: 32, 0x7FE00009: 64}.get(tag) or instance.number(_BITS_ALLOCATED)
    if rows is None or columns is None or bits is None:
        return False
    samples = instance.number(_SAMPLES_PER_PIXEL) or 1
    frames = instance.number(_NUMBER_OF_FRAMES) or 1
    expected = (rows * columns * samples * frames * bits + 7) // 8
    return length in {expected, expected + expected % 2}
