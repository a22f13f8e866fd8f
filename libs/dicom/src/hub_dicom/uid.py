"""Unique identifiers, PS3.5 9."""

import re
from typing import Final

_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)


def is_uid(text: str) -> bool:
    """Whether `text` can serve as a UID: digits and dots, at most 64 (PS3.5 9.1).

    Components with leading zeros are invalid there, but real archives send them, so they pass.
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None
