"""What takes the place of a value that must not be empty (code D): the same for everybody, valid for its VR (PS3.5 6.2)."""

from collections.abc import Callable
from typing import Final

from pydicom.datadict import tag_for_keyword

from hub_deidentification.dictionary import vr_of
from hub_deidentification.encoding import DataSet, Element

WORD: Final = b"REMOVED"
_BY_VR: Final[dict[str, bytes]] = {
    "AE": WORD,
    "AS": b"000Y",
    "CS": WORD,
    "DA": b"19000101",
    "DS": b"0",
    "DT": b"19000101000000",
    "FD": bytes(8),
    "FL": bytes(4),
    "IS": b"0",
    "LO": WORD,
    "LT": WORD,
    "OB": bytes(2),
    "OW": bytes(2),
    "PN": WORD,
    "SH": WORD,
    "SL": bytes(4),
    "SS": bytes(2),
    "ST": WORD,
    "TM": b"000000",
    "UC": WORD,
    "UL": bytes(4),
    "UN": bytes(2),
    "UR": b"about:blank",
    "US": bytes(2),
    "UT": WORD,
}
_BY_KEYWORD: Final = {
    "ReasonForTheAttributeModification": b"CORRECT",  # PS3.3 C.12.1.1.9: COERCE or CORRECT
}
_MODALITY_PERFORMED_PROCEDURE_STEP: Final = b"1.2.840.10008.3.1.2.3.3"
_NOBODY: Final = b"2.25.0"


def dummy(tag: int) -> Element:
    """An element for the tag that says nothing of its source."""
    keyword_item = _ITEMS.get(tag)
    vr = vr_of(tag)
    if vr == "SQ":
        return Element(tag, vr, items=[keyword_item() if keyword_item is not None else {}])
    return Element(tag, vr, _BY_TAG.get(tag) or _BY_VR[vr])


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return int(tag)


def _item(**values: bytes | DataSet) -> DataSet:
    elements = []
    for keyword, value in values.items():
        tag = _tag(keyword)
        elements.append(Element(tag, vr_of(tag), items=[value]) if isinstance(value, dict) else Element(tag, vr_of(tag), value))
    return {element.tag: element for element in elements}


def _code() -> DataSet:
    return _item(CodeValue=WORD, CodingSchemeDesignator=b"99RIH", CodeMeaning=b"Removed")


def _comment() -> DataSet:
    name = _item(CodeValue=b"121106", CodingSchemeDesignator=b"DCM", CodeMeaning=b"Comment")
    return _item(RelationshipType=b"CONTAINS", ValueType=b"TEXT", ConceptNameCodeSequence=name, TextValue=WORD)


def _point() -> DataSet:
    graphic = _item(
        GraphicAnnotationUnits=b"DISPLAY",
        GraphicDimensions=b"\2\0",
        NumberOfGraphicPoints=b"\1\0",
        GraphicData=bytes(8),
        GraphicType=b"POINT",
    )
    return _item(GraphicLayer=WORD, GraphicObjectSequence=graphic)


_BY_TAG: Final = {_tag(keyword): value for keyword, value in _BY_KEYWORD.items()}
_ITEMS: Final[dict[int, Callable[[], DataSet]]] = {
    _tag("ContentSequence"): _comment,
    _tag("FlowIdentifierSequence"): lambda: _item(FlowIdentifier=bytes(2)),
    _tag("GraphicAnnotationSequence"): _point,
    _tag("InstitutionCodeSequence"): _code,
    _tag("OperatorIdentificationSequence"): lambda: _item(PersonIdentificationCodeSequence=_code(), InstitutionName=WORD),
    _tag("PersonIdentificationCodeSequence"): _code,
    _tag("ReferencedPerformedProcedureStepSequence"): lambda: _item(
        ReferencedSOPClassUID=_MODALITY_PERFORMED_PROCEDURE_STEP, ReferencedSOPInstanceUID=_NOBODY
    ),
    _tag("VerifyingObserverSequence"): lambda: _item(
        VerifyingOrganization=WORD, VerificationDateTime=_BY_VR["DT"], VerifyingObserverName=WORD
    ),
    _tag("WaveformAnnotationSequence"): lambda: _item(UnformattedTextValue=WORD, ReferencedWaveformChannels=bytes(4)),
}
