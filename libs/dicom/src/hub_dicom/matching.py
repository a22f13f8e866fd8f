"""Attribute matching of PS3.4 C.2.2.2, as parameterised SQL over DICOM JSON (PS3.18 F) in PostgreSQL.

What a key asks for is read once (`read_condition`), then turned into a predicate (`predicate`). Values only ever become parameters.
Queries (QIDO-RS) and the conditions of a dataset mean the same because both come through here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Final, Literal

from pydicom.datadict import dictionary_keyword, dictionary_VR, tag_for_keyword

Kind = Literal["universal", "equal", "pattern", "range"]

WILDCARD_VRS: Final = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
"""The VRs for which `*` and `?` are wild cards (PS3.4 C.2.2.2.4)."""
NUMBER_VRS: Final = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
_TEXT_VRS: Final = WILDCARD_VRS | {"AS", "DT"}
_LEADING_SPACES_COUNT: Final = frozenset({"LT", "ST", "UT"})

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_DATE = re.compile(r"[0-9]{8}")
_OLD_DATE = re.compile(r"[0-9]{4}\.[0-9]{2}\.[0-9]{2}")  # ACR-NEMA, still in files (PS3.5 6.2)
_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9]|60)?)?|([01][0-9]|2[0-3])[0-5][0-9]([0-5][0-9]|60)\.[0-9]{1,6}")
_LONGEST_VALUE: Final = 1024
_NUMBER_IN_SQL: Final = r"^\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?\s*$"


class BadCondition(ValueError):
    """The key or its value cannot be matched as asked. The text names it and says what to write instead."""


class MalformedCondition(BadCondition):
    """It breaks a rule of the Standard: the request is wrong."""


class UnsupportedCondition(BadCondition):
    """The Standard allows it; this hub does not match it."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of the data dictionary (PS3.6), or one within the items of sequences."""

    name: str
    """As it was asked for."""
    path: tuple[str, ...]
    """Tags as DICOM JSON writes them, outermost first: `("00400275", "00400009")`."""
    vr: str

    @property
    def tag(self) -> str:
        """The outermost tag: eight upper-case hexadecimal digits."""
        return self.path[0]


@dataclass(frozen=True, slots=True)
class Condition:
    """What one key asks for."""

    attribute: Attribute
    kind: Kind
    values: tuple[str, ...] = ()
    """equal: any of these; pattern: one, with `*` and `?`; range: lower and upper bound, both inclusive, empty for none."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column that holds what an attribute says, so that a match needs no look into JSON and an index serves."""

    expression: str
    """SQL of type text."""
    within: str = "{}"
    """SQL around the predicate on `expression`, for one that stands in another table: `EXISTS (SELECT … AND {})`."""


@dataclass(frozen=True, slots=True)
class Predicate:
    """A boolean SQL expression with `%s` for each parameter."""

    sql: str
    parameters: tuple[object, ...]


def read_attribute(name: str) -> Attribute:
    """The attribute that a keyword, an eight-digit tag, or a dotted path of them names (PS3.18 8.3.4.1).

    Raises:
        MalformedCondition: it is none of these, or a path leads through what is no sequence.
        UnsupportedCondition: a private attribute, or a tag that the data dictionary lacks.
    """
    path: list[str] = []
    vr = "SQ"
    for part in name.split("."):
        if vr != "SQ":
            raise MalformedCondition(f"{name!r}: only a sequence has attributes within it")
        tag, vr = _look_up(part, name)
        path.append(tag)
    return Attribute(name, tuple(path), vr)


def keyword_of(tag: str) -> str:
    """The keyword of a tag that `read_attribute` gave."""
    return dictionary_keyword(int(tag, 16))


def split_condition(text: str) -> tuple[str, str]:
    """Keyword and value of `Keyword=value`.

    Raises:
        MalformedCondition: there is no `=`, or nothing before it.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise MalformedCondition(f"the condition {text[:80]!r} is not KEYWORD=VALUE, such as Modality=CT")
    return name.strip(), value


def read_condition(name: str, value: str) -> Condition:
    """What a key with this value asks for (PS3.4 C.2.2.2).

    Raises:
        MalformedCondition: the value is none that the attribute's VR allows in a key.
        UnsupportedCondition: the attribute's VR is not matched here.
    """
    attribute = read_attribute(name)
    if len(value) > _LONGEST_VALUE and attribute.vr != "UI":
        raise MalformedCondition(f"{name}: a value of {len(value)} characters is longer than any key ({_LONGEST_VALUE})")
    if "\x00" in value:
        raise MalformedCondition(f"{name}: a value holds no NUL character")
    if value == "":
        return Condition(attribute, "universal")
    if attribute.vr == "UI":
        return _uids(attribute, value)
    if "\\" in value:
        raise MalformedCondition(f"{name}: only UIDs are matched against a list; write one value")
    if attribute.vr in {"DA", "TM"}:
        return _moment(attribute, value)
    if attribute.vr in NUMBER_VRS or _is_number_choice(attribute.vr):
        return _number(attribute, value)
    if attribute.vr in _TEXT_VRS:
        return _text(attribute, value)
    raise UnsupportedCondition(f"{name}: attributes of VR {attribute.vr} are not matched here; leave the condition out")


def predicate(condition: Condition, attributes: str, columns: Mapping[str, Column] | None = None) -> Predicate:
    """SQL that is true for what matches.

    Args:
        condition: what is asked for.
        attributes: SQL of type jsonb: a data set in DICOM JSON.
        columns: by tag, columns that hold the same and are to be used instead.
    """
    if condition.kind == "universal":
        return Predicate("true", ())
    column = (columns or {}).get(condition.attribute.tag) if len(condition.attribute.path) == 1 else None
    if column is not None:
        inner = _on_text(condition, column.expression)
        return Predicate(column.within.format(inner.sql), inner.parameters)
    # Lax mode: what is absent, empty or of another shape gives no row, never an error.
    path = "$" + "".join(f'."{tag}".Value[*]' for tag in condition.attribute.path) + (".*" if condition.attribute.vr == "PN" else "")
    inner = _on_text(condition, "(element #>> '{}')")
    rows = f"jsonb_path_query({attributes}, %s::jsonpath) AS element"
    return Predicate(f"EXISTS (SELECT 1 FROM {rows} WHERE {inner.sql})", (path, *inner.parameters))  # noqa: S608 -- no value is in it


def _on_text(condition: Condition, text: str) -> Predicate:
    """The predicate on one value as text."""
    vr, kind, values = condition.attribute.vr, condition.kind, condition.values
    if vr == "UI":
        return Predicate(f"{text} = ANY(%s)", (list(values),))
    if vr in {"DA", "TM"}:
        return _on_moment(condition, text)
    if kind == "pattern":
        # PS3.4 C.2.2.2.4: case-sensitive, except for names.
        return Predicate(f"btrim({text}) {'ILIKE' if vr == 'PN' else 'LIKE'} %s", (_like(values[0]),))
    if vr == "PN":
        return Predicate(f"lower(btrim({text})) = lower(%s)", (values[0],))
    if vr in NUMBER_VRS or _is_number_choice(vr):
        return Predicate(f"CASE WHEN {text} ~ %s THEN {text}::numeric = %s ELSE false END", (_NUMBER_IN_SQL, Decimal(values[0])))
    return Predicate(f"{'rtrim' if vr in _LEADING_SPACES_COUNT else 'btrim'}({text}) = %s", (values[0],))


def _on_moment(condition: Condition, text: str) -> Predicate:
    """Dates and times compare as digits; the old forms 2020.01.31 and 10:30 count as the new ones."""
    if condition.attribute.vr == "DA":
        digits = f"replace(btrim({text}), '.', '') COLLATE \"C\""
    else:
        digits = f"rpad(translate(btrim({text}), ':.', ''), 12, '0') COLLATE \"C\""
    if condition.kind == "equal":
        return Predicate(f"{digits} = %s", (condition.values[0],))
    bounds = [(sign, bound) for sign, bound in zip((">=", "<="), condition.values, strict=True) if bound]
    return Predicate(" AND ".join(f"{digits} {sign} %s" for sign, _ in bounds), tuple(bound for _, bound in bounds))


def _look_up(part: str, name: str) -> tuple[str, str]:
    number = int(part, 16) if _TAG.fullmatch(part) else tag_for_keyword(part) if part else None  # "" is the keyword of retired tags
    if number is None:
        raise MalformedCondition(f"{name!r} is no keyword of the DICOM data dictionary (PS3.6) and no tag of eight hexadecimal digits")
    if (number >> 16) % 2:
        raise UnsupportedCondition(f"{name!r} is a private attribute: none leaves de-identification")
    try:
        return f"{number:08X}", dictionary_VR(number)
    except KeyError:
        raise UnsupportedCondition(f"{name!r} is no tag of the DICOM data dictionary (PS3.6)") from None


def _uids(attribute: Attribute, value: str) -> Condition:
    uids = tuple(dict.fromkeys(part.strip() for part in re.split(r"[,\\]", value)))
    if not all(len(uid) <= 64 and _UID.fullmatch(uid) for uid in uids):
        raise MalformedCondition(
            f"{attribute.name}: {value[:80]!r} is no UID and no list of UIDs joined by commas; UIDs take no wild cards"
        )
    return Condition(attribute, "equal", uids)


def _moment(attribute: Attribute, value: str) -> Condition:
    bounds = [bound.strip() for bound in value.split("-")]
    if len(bounds) > 2 or not any(bounds):
        raise MalformedCondition(f"{attribute.name}: {value!r} is no value and no range (20200101-20201231, 20200101-, -20201231)")
    reader = _date if attribute.vr == "DA" else _time
    if len(bounds) == 1:
        return Condition(attribute, "equal", (reader(attribute, bounds[0], "0"),))
    low, high = (reader(attribute, bound, pad) if bound else "" for bound, pad in zip(bounds, "09", strict=True))
    if low and high and low > high:
        raise MalformedCondition(f"{attribute.name}: the range {value!r} ends before it begins")
    return Condition(attribute, "range", (low, high))


def _date(attribute: Attribute, text: str, _pad: str) -> str:
    digits = text.replace(".", "") if _OLD_DATE.fullmatch(text) else text
    if not _DATE.fullmatch(digits) or not _is_date(digits):
        raise MalformedCondition(f"{attribute.name}: {text!r} is no date YYYYMMDD")
    return digits


def _is_date(digits: str) -> bool:
    try:
        date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return False
    return True


def _time(attribute: Attribute, text: str, pad: str) -> str:
    """Twelve digits. The upper bound of a range is the end of what it names: 1030 is all of that minute."""
    plain = text.replace(":", "")
    if not _TIME.fullmatch(plain):
        raise MalformedCondition(f"{attribute.name}: {text!r} is no time HHMMSS.FFFFFF, HHMMSS, HHMM or HH")
    return plain.replace(".", "").ljust(12, pad)


def _number(attribute: Attribute, value: str) -> Condition:
    try:
        number = Decimal(value.strip())
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or abs(number.adjusted()) > 400:
        raise MalformedCondition(f"{attribute.name}: {value!r} is no number")
    return Condition(attribute, "equal", (str(number),))


def _text(attribute: Attribute, value: str) -> Condition:
    if attribute.vr == "DT" and ("-" in value or "+" in value):
        raise UnsupportedCondition(f"{attribute.name}: ranges and offsets of VR DT are not matched here; ask for the date (VR DA) instead")
    significant = value.rstrip(" ") if attribute.vr in _LEADING_SPACES_COUNT else value.strip(" ")
    if not significant:
        return Condition(attribute, "universal")
    if attribute.vr in WILDCARD_VRS and ("*" in significant or "?" in significant):
        if not significant.strip("*"):
            return Condition(attribute, "universal")
        return Condition(attribute, "pattern", (significant,))
    return Condition(attribute, "equal", (significant,))


def _like(pattern: str) -> str:
    """The pattern as LIKE reads it."""
    escaped = re.sub(r"([\\%_])", r"\\\1", pattern)
    return escaped.replace("*", "%").replace("?", "_")


def _is_number_choice(vr: str) -> bool:
    """`US or SS` and the like: the dictionary leaves the choice to the image; both are numbers."""
    return set(vr.split(" or ")) <= NUMBER_VRS
