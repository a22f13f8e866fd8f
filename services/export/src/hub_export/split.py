"""Which side of the split a subject is on: always the same one.

A keyed hash of the research subject gives a number u in [0, 1); u below the hub's training percentage is training. Nothing else decides:
no list, no order, no dataset. So a subject stays where it is, whatever is added to the hub, as long as key and percentage stay. Both are
therefore fixed once for the whole hub, by the first dataset, in an object that is written with a conditional PUT.
"""

import hmac
import json
from dataclasses import dataclass
from typing import Final, Literal

from hub_objectstore import ObjectMissing, ObjectStore
from hub_runtime import KeyRing, StopProcess

from hub_export.errors import Refuse

Side = Literal["training", "validation"]
PURPOSE: Final = "split"
BUCKET: Final = "research"
KEY: Final = "exports/split.json"


@dataclass(frozen=True, slots=True)
class Split:
    """The hub's split."""

    training_percent: int
    keys: KeyRing

    def side(self, subject: str) -> Side:
        """The subject's side."""
        number = int.from_bytes(self.keys.hmac(PURPOSE, subject)[:8], "big")
        return "training" if number * 100 < self.training_percent << 64 else "validation"


def check_split(store: ObjectStore, keys: KeyRing, training_percent: int | None = None) -> bool:
    """Whether the hub's split is fixed. If it is, it is checked against this key and, where one is given, this percentage.

    Raises:
        Refuse: the percentage is another.
        StopProcess: the key is another: with it, subjects would change sides.
    """
    try:
        fixed = json.loads(store.get(BUCKET, KEY))
    except ObjectMissing:
        return False
    if not hmac.compare_digest(str(fixed["key_check"]), _key_check(keys)):
        raise StopProcess(
            f"the split key (version {keys.version}) is not the one that this hub's datasets were split with (version {fixed['key_version']}):"
            " subjects would change sides. Give export the key ring of that version."
        )
    if training_percent is not None and training_percent != fixed["training_percent"]:
        raise Refuse(
            f"the training percentage is {fixed['training_percent']} in this hub and cannot be {training_percent}:"
            f" ask for {fixed['training_percent']}. The first dataset fixed it, so that no validation patient is ever in a training set."
        )
    return True


def fix_split(store: ObjectStore, keys: KeyRing, training_percent: int) -> Split:
    """The hub's split, fixed now if it was not. Of several that fix it at once one wins, and the others are checked against it.

    Raises:
        Refuse, StopProcess: as `check_split`.
    """
    content = {"training_percent": training_percent, "key_version": keys.version, "key_check": _key_check(keys)}
    if not check_split(store, keys, training_percent):
        store.put_if_absent(BUCKET, KEY, json.dumps(content, sort_keys=True).encode(), content_type="application/json")
        check_split(store, keys, training_percent)
    return Split(training_percent, keys)


def _key_check(keys: KeyRing) -> str:
    """Recognises the key without telling it; of two parts, so no subject's hash."""
    return keys.hmac(PURPOSE, "key", "check").hex()
