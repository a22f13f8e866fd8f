"""Patients who do not exist: how a trust's test patients are told from real ones by name and number."""

from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

TEST_PATIENT_IDS: Final = ("999???????",)
"""NHS numbers of the range that is given to nobody."""
TEST_PATIENT_NAMES: Final = ("ZZZ*", "XXTEST*", "TEST", "TEST PATIENT*", "TESTPATIENT*", "PHANTOM")
"""What British hospitals call them. `TEST*` would be Testa and Tester too."""

_WILD: Final = "*?"
_FEWEST_LITERAL: Final = 3
_LONGEST_VALUE: Final = 1024
_SEPARATORS: Final = str.maketrans("", "", " -")


def _of_few(pattern: str) -> str:
    literal = sum(character not in _WILD and not character.isspace() for character in pattern)
    if any(character in _WILD for character in pattern) and literal < _FEWEST_LITERAL:
        # Not the pattern itself: it may be somebody's number.
        raise ValueError(f"this would be real patients too: a pattern with * or ? needs {_FEWEST_LITERAL} other characters")
    return pattern


Pattern = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_of_few)]
Patterns = Annotated[tuple[Pattern, ...], Field(max_length=100)]


class PatientPatterns(BaseModel):
    """Patterns of PatientID and PatientName with the wild cards of PS3.4 C.2.2.2.4, `*` and `?`; case does not count.

    A name's pattern must fit a whole name (`DOE^JANE`) or a whole component of one (`DOE`), in any of its three representations.
    A number's pattern must fit all of it, with or without its spaces and hyphens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    patient_ids: Patterns = TEST_PATIENT_IDS
    patient_names: Patterns = TEST_PATIENT_NAMES

    def match(self, patient_ids: Iterable[str], patient_names: Iterable[str]) -> bool:
        """Whether one of these numbers or names is a test patient's. The work is bounded, whatever the values are."""
        return _any(self.patient_ids, (form for value in patient_ids for form in _numbers(value))) or _any(
            self.patient_names, (part for value in patient_names for part in _parts(value))
        )


def _any(patterns: tuple[str, ...], values: Iterable[str]) -> bool:
    folded = [_folded(pattern) for pattern in patterns]
    return any(_fits(pattern, value) for value in values if value for pattern in folded)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _numbers(value: str) -> set[str]:
    folded = _folded(value[:_LONGEST_VALUE])
    return {folded, folded.translate(_SEPARATORS)}


def _parts(name: str) -> Iterable[str]:
    """The representations of a name (PS3.5 6.2.1.1), and the components of each."""
    for group in name[:_LONGEST_VALUE].replace("\\", "=").split("="):
        whole = group.strip(" \0^")
        yield _folded(whole)
        for component in whole.split("^"):
            yield _folded(component)


def _fits(pattern: str, text: str) -> bool:
    """Whether all of `text` is as the pattern says. Only the last `*` is ever tried again, so it takes no more than their product."""
    place = at = 0
    star, tried = -1, 0
    while place < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, tried = at, place
            at += 1
        elif at < len(pattern) and pattern[at] in {"?", text[place]}:
            at += 1
            place += 1
        elif star >= 0:
            tried += 1
            at, place = star + 1, tried
        else:
            return False
    return all(character == "*" for character in pattern[at:])
