"""What an attribute is: VR and keyword by tag, from pydicom's dictionary and the 26 attributes of Table E.1-1 that it does not know yet."""

import re
from functools import cache
from typing import Final

import pydicom.config
import pydicom.uid
from pydicom.datadict import add_dict_entries, dictionary_has_tag, get_entry

_NEWER: Final[dict[int, tuple[str, str, str, str, str]]] = {
    0x00081301: ("SQ", "1", "Principal Diagnosis Code Sequence", "", "PrincipalDiagnosisCodeSequence"),
    0x00081302: ("SQ", "1", "Primary Diagnosis Code Sequence", "", "PrimaryDiagnosisCodeSequence"),
    0x00081303: ("SQ", "1", "Secondary Diagnoses Code Sequence", "", "SecondaryDiagnosesCodeSequence"),
    0x00081304: ("SQ", "1", "Histological Diagnoses Code Sequence", "", "HistologicalDiagnosesCodeSequence"),
    0x00100011: ("SQ", "1", "Person Names to Use Sequence", "", "PersonNamesToUseSequence"),
    0x00100012: ("LT", "1", "Name to Use", "", "NameToUse"),
    0x00100013: ("UT", "1", "Name to Use Comment", "", "NameToUseComment"),
    0x00100014: ("SQ", "1", "Third Person Pronouns Sequence", "", "ThirdPersonPronounsSequence"),
    0x00100015: ("SQ", "1", "Pronoun Code Sequence", "", "PronounCodeSequence"),
    0x00100016: ("UT", "1", "Pronoun Comment", "", "PronounComment"),
    0x00100041: ("SQ", "1", "Gender Identity Sequence", "", "GenderIdentitySequence"),
    0x00100042: ("UT", "1", "Sex Parameters for Clinical Use Category Comment", "", "SexParametersForClinicalUseCategoryComment"),
    0x00100043: ("SQ", "1", "Sex Parameters for Clinical Use Category Sequence", "", "SexParametersForClinicalUseCategorySequence"),
    0x00100044: ("SQ", "1", "Gender Identity Code Sequence", "", "GenderIdentityCodeSequence"),
    0x00100045: ("UT", "1", "Gender Identity Comment", "", "GenderIdentityComment"),
    0x00100046: (
        "SQ",
        "1",
        "Sex Parameters for Clinical Use Category Code Sequence",
        "",
        "SexParametersForClinicalUseCategoryCodeSequence",
    ),
    0x00100047: ("UR", "1-n", "Sex Parameters for Clinical Use Category Reference", "", "SexParametersForClinicalUseCategoryReference"),
    0x00102162: ("UC", "1-n", "Ethnic Groups", "", "EthnicGroups"),
    0x0040A034: ("DT", "1", "Effective Start DateTime", "", "EffectiveStartDateTime"),
    0x0040A035: ("DT", "1", "Effective Stop DateTime", "", "EffectiveStopDateTime"),
    0x0040B034: ("DT", "1", "Annotation DateTime", "", "AnnotationDateTime"),
    0x0040B036: ("DT", "1", "Segment Definition DateTime", "", "SegmentDefinitionDateTime"),
    0x0040B03B: ("LO", "1", "Montage Name", "", "MontageName"),
    0x0040B03F: ("SH", "1-n", "Montage Channel Label", "", "MontageChannelLabel"),
    0x0040E012: ("UR", "1", "Display URI", "", "DisplayURI"),
    0x3004007F: ("LO", "1", "Dose Calculation Model Name", "", "DoseCalculationModelName"),
}

add_dict_entries({tag: entry for tag, entry in _NEWER.items() if not dictionary_has_tag(tag)})

_DICOM_ROOT: Final = re.compile(r"1\.2\.840\.10008(\.[0-9]{1,4}){2,9}", re.ASCII)

UNKNOWN: Final = "UN"


@cache
def vr_of(tag: int) -> str:
    """The VR of a tag, several alternatives as the dictionary writes them (`US or SS`); UN for what it does not know."""
    try:
        return get_entry(tag)[0]
    except KeyError:
        return UNKNOWN


@cache
def keyword_of(tag: int) -> str:
    """The keyword of a tag, empty for what the dictionary does not know."""
    try:
        return get_entry(tag)[4]
    except KeyError:
        return ""


@cache
def is_current(tag: int) -> bool:
    """Whether the tag is an attribute of PS3.6 that is not retired; repeating groups (curves, overlays) are not counted."""
    return dictionary_has_tag(tag) and not get_entry(tag)[3]


def is_registered_uid(uid: str) -> bool:
    """Whether PS3.6 Annex A registers the UID: a SOP class, a transfer syntax, a well-known instance or frame of reference."""
    return bool(pydicom.uid.UID(uid, pydicom.config.IGNORE).keyword)


def is_dicom_uid(uid: str) -> bool:
    """Whether the UID can be one of PS3.6 Annex A, in an edition that the dictionary does not know too: no component holds a number."""
    return is_registered_uid(uid) or _DICOM_ROOT.fullmatch(uid) is not None


def sop_class_of(keyword: str) -> str | None:
    """The UID of the SOP class with this keyword, None where there is none."""
    uid = getattr(pydicom.uid, keyword, None)
    return str(uid) if isinstance(uid, pydicom.uid.UID) and uid.type == "SOP Class" else None
