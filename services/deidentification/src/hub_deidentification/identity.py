"""Who a patient is to research: one keyed hash per person, whichever trust sent the image.

DESIGN promise 4: HMAC over the validated national number and its scheme; without one, over assigning authority and local number.
"""

import base64
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from hub_dicom import NationalNumber, Trust

from hub_deidentification.dictionary import is_registered_uid
from hub_deidentification.encoding import Instance, items_of
from hub_deidentification.text import text_of

PURPOSES: Final = ("subject", "uid", "date", "object", "source")
"""What the key ring must hold a key for."""
SUBJECT_PREFIX: Final = "Covid"
NHS_NUMBER: Final = "nhs-number"
SHORTEST_SHIFT: Final = 30
LONGEST_SHIFT: Final = 3650

_PATIENT_ID: Final = 0x00100020
_ISSUER_OF_PATIENT_ID: Final = 0x00100021
_OTHER_PATIENT_IDS_SEQUENCE: Final = 0x00101002
_SEPARATORS: Final = re.compile(r"[ \-]")
_TEN_DIGITS: Final = re.compile(r"[0-9]{10}", re.ASCII)


class Keys(Protocol):
    """The key ring, as far as pseudonyms need it: see `hub_runtime.KeyRing`."""

    @property
    def version(self) -> int:
        """Of all keys in it."""
        ...

    def hmac(self, purpose: str, *parts: str) -> bytes:
        """HMAC-SHA-256 over the parts under the purpose's key."""
        ...


class NoPatientId(ValueError):
    """The instance names no patient."""


class ConflictingPatients(ValueError):
    """What is one study, or even one instance, names more than one patient."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What an instance says about who its patient is. Never written anywhere: only keyed hashes of it are."""

    national: str | None
    """A valid NHS number, from the field and issuer that the trust's entry names; ten digits elsewhere are a local number."""
    local: tuple[str, str] | None
    """Assigning authority and local number."""

    def __repr__(self) -> str:
        """Without the numbers: representations end in logs."""
        return "Identity(…)"


def nhs_number(text: str) -> str | None:
    """The ten digits of a valid NHS number, spaces and hyphens taken out; None for anything else.

    Valid: ten digits, the last the check digit modulo 11 of the first nine, and not ten times the same digit, although those pass.
    """
    digits = _SEPARATORS.sub("", text.strip())
    if not _TEN_DIGITS.fullmatch(digits) or len(set(digits)) == 1:
        return None
    remainder = 11 - sum(int(digit) * weight for digit, weight in zip(digits[:9], range(10, 1, -1), strict=True)) % 11
    return digits if remainder % 11 == int(digits[9]) else None


def identity_of(instance: Instance, trust: Trust) -> Identity:
    """Who the instance's patient is.

    Raises:
        NoPatientId: it names none.
        ConflictingPatients: it carries two different national numbers where there should be one.
    """
    patient_id = text_of(instance.root, _PATIENT_ID, instance.root)
    issuer = text_of(instance.root, _ISSUER_OF_PATIENT_ID, instance.root)
    national = _national(instance, trust.national_number, patient_id, issuer)
    rule = trust.national_number
    if rule is not None and rule.field == "PatientID" and issuer == rule.issuer:
        # An invalid national number is no more than this trust's own: a placeholder such as 9999999999 must not join people of two trusts.
        issuer = ""
    local = (issuer or trust.assigning_authority, patient_id) if patient_id else None
    if national is None and local is None:
        raise NoPatientId("the instance has no Patient ID")
    return Identity(national, local)


def one_person(identities: Iterable[Identity]) -> Identity:
    """The one person that all instances of a study belong to.

    An instance without a national number belongs to whom another instance of the study with the same local number names.

    Raises:
        ConflictingPatients: they belong to more than one.
    """
    found = set(identities)
    national = {identity.national for identity in found if identity.national is not None}
    if len(national) > 1:
        raise ConflictingPatients("the study has instances of more than one national number")
    if not national:
        if len(found) != 1:
            raise ConflictingPatients("the study has instances of more than one local number")
        return found.pop()
    known = {identity.local for identity in found if identity.national is not None}
    if any(identity.national is None and identity.local not in known for identity in found):
        raise ConflictingPatients("the study has instances of a local number that its national number does not cover")
    return Identity(national.pop(), None)


class Pseudonyms:
    """Everything that is derived under the keys. The same input gives the same pseudonym everywhere and always. Shared by threads."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._uids: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def key_version(self) -> int:
        """Of the keys."""
        return self._keys.version

    def subject(self, identity: Identity) -> str:
        """The research subject: `Covid` and twenty hexadecimal digits, so that tools that take only letters and digits take it."""
        if identity.national is not None:
            parts = ("national", NHS_NUMBER, identity.national)
        elif identity.local is not None:
            parts = ("local", *identity.local)
        else:
            raise NoPatientId("an identity without any number")
        return SUBJECT_PREFIX + self._keys.hmac("subject", *parts).hex()[:20]

    def shift_days(self, subject: str) -> int:
        """How far all dates of a subject move: a constant between 30 and 3650 days into the past."""
        spread = LONGEST_SHIFT - SHORTEST_SHIFT + 1
        return -(SHORTEST_SHIFT + int.from_bytes(self._keys.hmac("date", subject)[:8], "big") % spread)

    def uid(self, uid: str) -> str:
        """What stands for a UID: `2.25.` and a UUID as an integer (PS3.5 B.2). UIDs that DICOM registers stand for themselves."""
        if not uid or is_registered_uid(uid):
            return uid
        with self._lock:
            found = self._uids.get(uid)
        if found is None:
            number = int.from_bytes(self._keys.hmac("uid", uid)[:16], "big")
            # Version 8 (RFC 9562): a UUID made by a rule of our own.
            number = number & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
            found = f"2.25.{number}"
            with self._lock:
                if len(self._uids) >= 100_000:
                    self._uids.clear()
                self._uids[uid] = found
        return found

    def source(self, trust: str) -> str:
        """What stands for a trust in the research zone: ten lower-case letters and digits."""
        return base64.b32encode(self._keys.hmac("source", trust)).decode().lower()[:10]

    def object_id(self, *parts: str) -> str:
        """The last part of a research object's key: the same for the same content."""
        return self._keys.hmac("object", *parts).hex()


def _national(instance: Instance, rule: NationalNumber | None, patient_id: str, issuer: str) -> str | None:
    if rule is None:
        return None
    if rule.field == "PatientID":
        return nhs_number(patient_id) if issuer == rule.issuer else None
    element = instance.root.get(_OTHER_PATIENT_IDS_SEQUENCE)
    items = [] if element is None else items_of(element, little=instance.syntax.little)
    numbers = {
        number
        for item in items
        if text_of(item, _ISSUER_OF_PATIENT_ID, instance.root) == rule.issuer
        and (number := nhs_number(text_of(item, _PATIENT_ID, instance.root))) is not None
    }
    if len(numbers) > 1:
        raise ConflictingPatients("the instance carries two different national numbers")
    return numbers.pop() if numbers else None
