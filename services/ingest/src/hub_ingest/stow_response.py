"""What a STOW-RS request is answered: the Store Instances Response (PS3.18 10.5.3 and Annex I.2), its status, JSON and XML."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement, tostring

from hub_ingest.intake import CANNOT_UNDERSTAND

JSON: Final = "application/dicom+json"
XML: Final = "application/dicom+xml"

# Failure reasons, PS3.18 table I.2-2.
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
TRANSFER_SYNTAX_NOT_SUPPORTED: Final = 0xC122


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one part."""

    sop_class_uid: str | None
    """None: the part cannot be decoded so far as to say which instance it is."""
    sop_instance_uid: str | None
    status: int
    """0: durable and announced. Else the Failure Reason."""
    reason: str = ""
    """A code for log and metrics; empty for success."""
    passing: bool = False
    """The same again, later, may be stored."""


def http_status(results: Sequence[Result], *, malformed: bool) -> int:
    """The status of PS3.18 table 10.5.3-1.

    A failure status says that nothing was stored, so whatever was stored makes it 200 or 202 and is named in the payload.
    """
    stored = sum(result.status == 0 for result in results)
    if stored:
        return 200 if stored == len(results) and not malformed else 202
    if any(result.passing for result in results):
        return 503
    if malformed or not results:
        return 400
    if all(result.reason == "media-type" for result in results):
        return 415
    return 409


def payload(results: Sequence[Result], media_type: str, *, malformed: bool = False) -> bytes:
    """The Store Instances Response. Retrieve URLs are empty (type 2): what identifies people is not given out by DICOMweb.

    `malformed`: the body could not be read to its end; what was lost there is one more failure of no instance.
    """
    stored = [_reference(result) | {"00081190": {"vr": "UR"}} for result in results if result.status == 0]
    failed = [_reference(result) | _failure(result) for result in results if result.status and result.sop_instance_uid]
    others = [_failure(result) for result in results if result.status and not result.sop_instance_uid]
    if malformed:
        others.append({"00081197": {"vr": "US", "Value": [CANNOT_UNDERSTAND]}})
    data_set: dict[str, Any] = {"00081190": {"vr": "UR"}}
    for tag, items in (("00081198", failed), ("00081199", stored), ("0008119A", others)):
        if items:
            data_set[tag] = {"vr": "SQ", "Value": items}
    if media_type == XML:
        root = Element("NativeDicomModel", {"xmlns": "http://dicom.nema.org/PS3.19/models/NativeDICOM", "xml:space": "preserve"})
        _to_xml(root, data_set)
        return bytes(tostring(root, encoding="utf-8", xml_declaration=True))
    return json.dumps(data_set, separators=(",", ":")).encode()


def negotiate(accept: str | None) -> str | None:
    """The media type to answer with (PS3.18 8.7.5): the preferred one of the header Accept, JSON where both are as good; None: neither."""
    best: tuple[float, str] | None = None
    for offered, also in ((JSON, "application/json"), (XML, "application/xml")):
        quality = _quality(accept or "*/*", offered, also)
        if quality > 0 and (best is None or quality > best[0]):
            best = (quality, offered)
    return best[1] if best is not None else None


def _quality(accept: str, *names: str) -> float:
    """The weight of the most specific range that fits (RFC 9110 12.5.1); 0: none does."""
    found: dict[str, float] = {}
    for entry in accept.lower().split(","):
        kind, *parameters = (text.strip() for text in entry.split(";"))
        weight = next((text.removeprefix("q=").strip() for text in parameters if text.startswith("q=")), "1")
        try:
            found[kind] = max(found.get(kind, 0.0), min(1.0, float(weight)))
        except ValueError:
            found.setdefault(kind, 0.0)
    return next((found[kind] for kind in (*names, "application/*", "*/*") if kind in found), 0.0)


def _reference(result: Result) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [result.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [result.sop_instance_uid]},
    }


def _failure(result: Result) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [result.status]}}


_KEYWORDS: Final = {
    "00081150": "ReferencedSOPClassUID",
    "00081155": "ReferencedSOPInstanceUID",
    "00081190": "RetrieveURL",
    "00081197": "FailureReason",
    "00081198": "FailedSOPSequence",
    "00081199": "ReferencedSOPSequence",
    "0008119A": "OtherFailuresSequence",
}


def _to_xml(parent: Element, data_set: dict[str, Any]) -> None:
    """The Native DICOM Model, PS3.19 A.1."""
    for tag, element in sorted(data_set.items()):
        attribute = SubElement(parent, "DicomAttribute", {"tag": tag, "vr": element["vr"], "keyword": _KEYWORDS[tag]})
        for number, value in enumerate(element.get("Value", ()), 1):
            if isinstance(value, dict):
                _to_xml(SubElement(attribute, "Item", {"number": str(number)}), value)
            else:
                SubElement(attribute, "Value", {"number": str(number)}).text = str(value)
