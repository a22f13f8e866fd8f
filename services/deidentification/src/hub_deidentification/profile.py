"""A profile: the table's rows and what the hub decides on top, compiled to one action per tag.

The profile's digest covers the rules, the engine's version and the dictionary's: the same digest means the same bytes out of the same
bytes and keys.
"""

import hashlib
import json
from enum import Enum
from functools import cache
from importlib.resources import files
from typing import Annotated, Final, Literal

import pydicom
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydicom.datadict import tag_for_keyword

from hub_deidentification import rules
from hub_deidentification.dictionary import is_current, keyword_of, sop_class_of, vr_of
from hub_deidentification.rules import UnusableRules

ENGINE_VERSION: Final = 1
"""Counts changes of the engine after which the same input may give other bytes."""

DEFAULT: Final = "basic-modified-dates"
_OPTION: Final = "retain_longitudinal_modified_dates"
_SHIFTABLE: Final = frozenset({"DA", "DT", "TM"})
_TIMEZONE_OFFSET: Final = 0x00080201


class Action(Enum):
    """What happens to an element."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    REPLACE_UID = "U"
    REPLACE_FOREIGN_UID = "foreign"
    """Of an attribute that names classes, syntaxes or groups: UIDs under DICOM's root stay, others may be an institution's."""
    CLEAN = "clean"
    """A kept sequence: its items are gone through."""
    SHIFT = "C"
    """A date or time: moved; what cannot be moved falls to the rule's `otherwise`."""
    KEEP = "K"


class Rule(BaseModel):
    """One tag's action, and what takes its place where it cannot be done."""

    model_config = ConfigDict(frozen=True)

    action: Action
    otherwise: Action = Action.REMOVE


class BurnedInRisk(BaseModel):
    """What makes an image one whose pixels probably carry text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    modalities: frozenset[str]
    image_type_words: tuple[str, ...]
    colours: frozenset[str]
    converted: bool


class ProfileFile(BaseModel):
    """A profile as its file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    options: tuple[Literal["retain_longitudinal_modified_dates"], ...]
    unlisted: dict[str, Literal["X", "Z", "C", "U"]]
    kept_text: tuple[str, ...]
    overrides: dict[str, Literal["X", "Z", "D"]]
    accept: tuple[str, ...]
    hold_back: dict[str, tuple[str, ...]]
    burned_in_risk: BurnedInRisk


class Profile:
    """A compiled profile. Immutable; shared by threads."""

    def __init__(self, content: ProfileFile) -> None:
        """Compile the profile over the table.

        Raises:
            UnusableRules: a keyword or SOP class in it does not exist, or a code of the table is not known.
        """
        self.content = content
        unlisted = [keyword for keyword in (*content.kept_text, *content.overrides) if tag_for_keyword(keyword) is None]
        if unlisted:
            raise UnusableRules(f"profile {content.name}: no attribute has the keyword {unlisted[0]}")
        self._kept_text = frozenset(_tag(keyword) for keyword in content.kept_text)
        self._overrides = {_tag(keyword): Rule(action=Action(code)) for keyword, code in content.overrides.items()}
        self._rows = {number: self._compile(number, row) for row in rules.table() if (number := row.number) is not None}
        self.accepted = frozenset(_sop_class(content.name, keyword) for keyword in content.accept)
        self.digest = hashlib.sha256(json.dumps(self._canonical(), sort_keys=True).encode()).hexdigest()
        self.identity = f"{content.name}@{self.digest[:12]}"
        """Name and digest, as events and manifests carry it."""
        self.rule = cache(self._rule)
        """The rule for a tag: a plain function of the tag."""

    def _canonical(self) -> object:
        return {
            "engine": ENGINE_VERSION,
            "dictionary": pydicom.__version__,
            "table": rules.SHA256,
            "profile": json.loads(self.content.model_dump_json())
            | {
                "burned_in_risk": {
                    name: sorted(value) if isinstance(value, frozenset) else value for name, value in self.content.burned_in_risk
                }
            },
        }

    def _compile(self, tag: int, row: rules.Row) -> Rule:
        basic = _resolved(row.codes["basic_profile"], vr_of(tag))
        cleans_date = _OPTION in self.content.options and row.codes.get(_OPTION) == "C"
        if cleans_date and (vr_of(tag) in _SHIFTABLE or tag == _TIMEZONE_OFFSET):
            return Rule(action=Action.SHIFT, otherwise=basic)
        return Rule(action=basic)

    def _rule(self, tag: int) -> Rule:
        group = tag >> 16
        if group % 2 or group in {0x0000, 0x0002} or tag & 0xFFFF == 0:
            # Private; command set and file meta, which no data set holds (PS3.5 7.1); group lengths.
            return Rule(action=Action.REMOVE)
        if tag in self._overrides:
            return self._overrides[tag]
        if tag in self._rows:
            return self._rows[tag]
        if not is_current(tag) or group in {0x0004, 0x0006, 0xFFFC}:
            # Unknown, retired, curves and overlays (planes go whole: without their data the rest says nothing), DICOMDIR, padding.
            return Rule(action=Action.REMOVE)
        return self._unlisted(tag)

    def _unlisted(self, tag: int) -> Rule:
        vr = vr_of(tag)
        if vr == "SQ":
            return Rule(action=Action.CLEAN)
        code = self.content.unlisted.get(vr)
        if code is None or tag in self._kept_text:
            return Rule(action=Action.KEEP)
        return Rule(action=Action.REPLACE_FOREIGN_UID if code == "U" else Action(code), otherwise=Action.EMPTY)


@cache
def load_profile(name: str = DEFAULT) -> Profile:
    """A profile that comes with the package.

    Raises:
        UnusableRules: there is none of that name, or it cannot be used.
    """
    file = files("hub_deidentification") / "data" / "profiles" / f"{name}.yaml"
    if not file.is_file():
        raise UnusableRules(f"there is no profile {name}")
    try:
        return Profile(ProfileFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, ValidationError) as error:
        raise UnusableRules(f"profile {name}: {error}") from error


def _resolved(code: str, vr: str) -> Action:
    """The action of a code. Of a compound one the last letter: conformant whatever the attribute's Type, and no value is ever kept."""
    last = code.rsplit("/", 1)[-1]
    if last == "U*":
        return Action.CLEAN
    if last == "D" and vr == "UI":
        return Action.REPLACE_UID
    try:
        return Action(last)
    except ValueError:
        raise UnusableRules(f"Table E.1-1 has the code {code}, which this engine does not know") from None


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None or keyword_of(tag) != keyword:
        raise UnusableRules(f"no attribute has the keyword {keyword}")
    return int(tag)


def _sop_class(profile: str, keyword: str) -> str:
    uid = sop_class_of(keyword)
    if uid is None:
        raise UnusableRules(f"profile {profile}: there is no SOP class {keyword}")
    return uid
