"""The engine: one instance in, the same instance without its patient out (PS3.15 E.1). A pure function of bytes, profile and keys."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hub_dicom import file_meta

from hub_deidentification.dates import shifted
from hub_deidentification.dictionary import UNKNOWN, is_dicom_uid, is_registered_uid, vr_of
from hub_deidentification.dummies import dummy
from hub_deidentification.encoding import DataSet, Element, Instance, Syntax, items_of, write
from hub_deidentification.identity import Pseudonyms
from hub_deidentification.profile import Action, Profile, Rule
from hub_deidentification.text import CHARACTER_SET_VRS, SPECIFIC_CHARACTER_SET, decode, terms_of

_SOP_CLASS_UID: Final = 0x00080016
_SOP_INSTANCE_UID: Final = 0x00080018
_MODALITY: Final = 0x00080060
_PATIENT_NAME: Final = 0x00100010
_PATIENT_ID: Final = 0x00100020
_SERIES_INSTANCE_UID: Final = 0x0020000E
_PATIENT_IDENTITY_REMOVED: Final = 0x00120062
_DEIDENTIFICATION_METHOD: Final = 0x00120063
_DEIDENTIFICATION_METHOD_CODE_SEQUENCE: Final = 0x00120064
_LONGITUDINAL_TEMPORAL_INFORMATION_MODIFIED: Final = 0x00280303
_CODE_VALUE: Final = 0x00080100

_METHODS: Final = {
    "113100": b"Basic Application Confidentiality Profile",
    "113107": b"Retain Longitudinal Temporal Information Modified Dates Option",
}
"""CID 7050, as far as this engine does it."""

# A value under another VR than the dictionary's is kept only where neither could hold a name, a date, a UID, prose or a sequence.
_SENSITIVE: Final = frozenset({"DA", "DT", "LT", "PN", "SQ", "ST", "TM", "UC", "UI", "UR", "UT"})


@dataclass(frozen=True, slots=True)
class Deidentified:
    """The result."""

    file: bytes
    instance: Instance
    """What `file` holds, as a tree."""
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    modality: str


def deidentify(instance: Instance, profile: Profile, pseudonyms: Pseudonyms, subject: str) -> Deidentified:
    """De-identify one instance that `acceptance.check` has let pass.

    Args:
        instance: as read; it is not changed.
        profile: which action for which attribute.
        pseudonyms: where UIDs and the date shift come from.
        subject: the research subject, Patient ID and Patient's Name of the result.

    Raises:
        Unparseable: a sequence that would be kept cannot be read.
    """
    engine = _Engine(profile, pseudonyms, pseudonyms.shift_days(subject), instance.syntax)
    root = engine.clean(instance.root, (), 0)
    for tag, vr, value in (
        (_PATIENT_NAME, "PN", subject.encode()),
        (_PATIENT_ID, "LO", subject.encode()),
        (_PATIENT_IDENTITY_REMOVED, "CS", b"YES"),
        (_DEIDENTIFICATION_METHOD, "LO", f"Regional Imaging Hub {profile.identity}".encode()[:64]),
        (_LONGITUDINAL_TEMPORAL_INFORMATION_MODIFIED, "CS", b"MODIFIED"),
    ):
        root[tag] = Element(tag, vr, value)
    root[_DEIDENTIFICATION_METHOD_CODE_SEQUENCE] = _methods()
    result = Instance(instance.syntax, root)
    sop_class, sop_instance = result.value(_SOP_CLASS_UID), result.value(_SOP_INSTANCE_UID)
    file = file_meta(sop_class, sop_instance, instance.syntax.uid) + write(root, instance.syntax)
    return Deidentified(file, result, sop_class, sop_instance, result.value(_SERIES_INSTANCE_UID), result.value(_MODALITY).strip())


class _Engine:
    def __init__(self, profile: Profile, pseudonyms: Pseudonyms, shift_days: int, syntax: Syntax) -> None:
        self._rule = profile.rule
        self._uid = pseudonyms.uid
        self._days = shift_days
        self._little = syntax.little

    def clean(self, data_set: DataSet, inherited: tuple[str, ...], depth: int) -> DataSet:
        """The data set with each element's action done, items of kept sequences included."""
        declared = terms_of(data_set, inherited)
        terms = declared or ()
        kept: DataSet = {}
        for tag, element in data_set.items():
            if tag == SPECIFIC_CHARACTER_SET and declared is None:
                continue  # not a defined term: nothing can be decoded by it, and it may say anything
            rule = self._rule(tag)
            result = self._done(element, rule, terms, depth)
            if result is not None:
                kept[tag] = result
        return kept

    def _done(self, element: Element, rule: Rule, terms: tuple[str, ...], depth: int) -> Element | None:  # noqa: PLR0911 -- one per action
        match rule.action:
            case Action.REMOVE:
                return None
            case Action.EMPTY:
                return _empty(element.tag)
            case Action.DUMMY:
                return dummy(element.tag)
            case Action.REPLACE_UID:
                return self._with_other_uids(element, keep=is_registered_uid)
            case Action.REPLACE_FOREIGN_UID:
                return self._with_other_uids(element, keep=is_dicom_uid)
            case Action.SHIFT:
                return self._with_other_dates(element, rule)
            case Action.CLEAN:
                return self._with_clean_items(element, terms, depth)
            case Action.KEEP:
                return self._as_it_is(element, terms)

    def _with_other_uids(self, element: Element, *, keep: Callable[[str], bool]) -> Element | None:
        if element.items is not None:
            return None
        values = [value.strip(" \0") for value in element.text().split("\\")]
        return Element(element.tag, "UI", "\\".join(value if keep(value) else self._uid(value) for value in values).encode())

    def _with_other_dates(self, element: Element, rule: Rule) -> Element | None:
        vr = vr_of(element.tag)
        text = None if element.items is not None else shifted(vr, element.text(), self._days)
        if text is None:
            return self._done(element, Rule(action=rule.otherwise), (), 0)
        return Element(element.tag, vr, text.encode())

    def _with_clean_items(self, element: Element, terms: tuple[str, ...], depth: int) -> Element | None:
        if element.vr not in {"SQ", UNKNOWN} or (element.vr == UNKNOWN and not self._little):
            # Something else under a sequence's tag, or (PS3.5 6.2.2) little endian items within big endian.
            return None
        items = items_of(element, little=self._little, depth=depth + 1)
        return Element(element.tag, "SQ", items=[self.clean(item, terms, depth + 1) for item in items])

    def _as_it_is(self, element: Element, terms: tuple[str, ...]) -> Element | None:
        usual = vr_of(element.tag)
        if element.items is not None:
            return None
        vr = element.vr
        if vr == UNKNOWN and self._little and len(usual) == 2:
            vr = usual  # PS3.5 6.2.2: the value in UN is encoded as in implicit VR little endian
        if vr != usual and vr not in usual.split(" or ") and (vr in _SENSITIVE or usual in _SENSITIVE):
            return None
        if vr in CHARACTER_SET_VRS and decode(bytes(element.value), terms) is None:
            return _empty(element.tag)
        if vr not in CHARACTER_SET_VRS and vr in {"AE", "AS", "CS", "DS", "IS"} and not bytes(element.value).isascii():
            return _empty(element.tag)
        return Element(element.tag, vr, element.value, encapsulated=element.encapsulated)


def _empty(tag: int) -> Element:
    vr = vr_of(tag)
    return Element(tag, vr, items=[]) if vr == "SQ" else Element(tag, vr)


def _methods() -> Element:
    items: list[DataSet] = [
        {
            _CODE_VALUE: Element(_CODE_VALUE, "SH", code.encode()),
            0x00080102: Element(0x00080102, "SH", b"DCM"),
            0x00080104: Element(0x00080104, "LO", meaning),
        }
        for code, meaning in _METHODS.items()
    ]
    return Element(_DEIDENTIFICATION_METHOD_CODE_SEQUENCE, "SQ", items=items)
