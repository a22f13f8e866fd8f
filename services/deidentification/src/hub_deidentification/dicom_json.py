"""The DICOM JSON Model, PS3.18 Annex F, of what is not bulk data. One instance is one line of a study's metadata object."""

import json
import math
import struct
from collections.abc import Callable
from typing import Any, Final

from hub_deidentification.encoding import DataSet, Element, Instance, items_of
from hub_deidentification.text import CHARACTER_SET_VRS, SPECIFIC_CHARACTER_SET, decode, terms_of

_PIXEL_REPRESENTATION: Final = 0x00280103
_NUMBERS: Final = {"FD": "d", "FL": "f", "SL": "l", "SS": "h", "SV": "q", "UL": "L", "US": "H", "UV": "Q"}
_SINGLE: Final = frozenset({"LT", "ST", "UR", "UT"})
"""VRs whose value a backslash does not part (PS3.5 6.4)."""
_TEXT: Final = CHARACTER_SET_VRS | {"AE", "AS", "CS", "DA", "DT", "TM", "UI", "UR"}
_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")

Json = dict[str, Any]


def metadata_line(instance: Instance) -> bytes:
    """The instance's elements as one line of UTF-8 JSON, tags ascending. Elements of binary VRs are left out, at every level."""
    return json.dumps(_object(instance.root, instance, ()), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _object(data_set: DataSet, instance: Instance, inherited: tuple[str, ...]) -> Json:
    terms = terms_of(data_set, inherited) or ()
    found: Json = {}
    for tag in sorted(data_set):
        element = data_set[tag]
        vr = _vr(element, data_set, instance)
        if vr == "SQ":
            values: list[Any] = [_object(item, instance, terms) for item in items_of(element, little=instance.syntax.little)]
        elif tag == SPECIFIC_CHARACTER_SET:
            values = ["ISO_IR 192"] if len(element.value) else []  # F.2: the JSON is UTF-8 whatever the source was
        elif vr in _NUMBERS:
            values = _numbers(element, vr, little=instance.syntax.little)
        elif vr == "AT":
            values = _tags(element, little=instance.syntax.little)
        elif vr in {"DS", "IS"}:
            values = [_decimal(vr, value) for value in _split(element.text())]
        elif vr in _TEXT:
            values = _texts(element, vr, terms)
        else:
            continue
        found[f"{tag:08X}"] = {"vr": vr, "Value": values} if values else {"vr": vr}
    return found


def _vr(element: Element, data_set: DataSet, instance: Instance) -> str:
    if element.vr != "US or SS":
        return element.vr
    representation = data_set.get(_PIXEL_REPRESENTATION) or instance.root.get(_PIXEL_REPRESENTATION)
    return "SS" if representation is not None and any(bytes(representation.value)) else "US"


def _numbers(element: Element, vr: str, *, little: bool) -> list[Any]:
    code = struct.Struct(("<" if little else ">") + _NUMBERS[vr])
    whole = len(element.value) - len(element.value) % code.size
    return [_finite(value) for (value,) in code.iter_unpack(bytes(element.value[:whole]))]


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else {math.inf: "inf", -math.inf: "-inf"}.get(value, "NaN")


def _tags(element: Element, *, little: bool) -> list[str]:
    code = struct.Struct("<HH" if little else ">HH")
    whole = len(element.value) - len(element.value) % 4
    return [f"{group:04X}{number:04X}" for group, number in code.iter_unpack(bytes(element.value[:whole]))]


def _decimal(vr: str, text: str) -> float | int | str | None:
    text = text.strip(" \0")
    if not text:
        return None
    kind: Callable[[str], float] = int if vr == "IS" else float
    try:
        return _finite(kind(text))
    except ValueError:
        return text


def _texts(element: Element, vr: str, terms: tuple[str, ...]) -> list[Any]:
    text = decode(bytes(element.value), terms) if vr in CHARACTER_SET_VRS else element.text()
    text = (text or "").rstrip("\0 ")
    if not text:
        return []
    values = [text] if vr in _SINGLE else [value.strip(" \0") for value in text.split("\\")]
    if vr != "PN":
        return [value or None for value in values]
    return [{name: group for name, group in zip(_GROUPS, value.split("="), strict=False) if group} or None for value in values]


def _split(text: str) -> list[str]:
    return text.split("\\") if text else []
