"""The split: the same side for ever, the asked share, and one percentage and key for the hub."""

import pytest
from hub_export.errors import Refuse
from hub_export.split import Split, check_split, fix_split
from hub_objectstore import MemoryObjectStore
from hub_runtime import KeyRing, StopProcess

KEYS = KeyRing(1, {"split": bytes(range(32))})
SUBJECTS = [f"Subject{number:06}" for number in range(20_000)]


def test_a_subjects_side_is_what_it_was() -> None:
    """These sides were written down once. When this fails, a change moves patients between training and validation: do not make it."""
    split = Split(80, KEYS)
    sides = "".join(split.side(f"Subject{number}")[0] for number in range(40))
    assert sides == "tttvttvvttttvvtttttttvtttttvtttvtvtttttt"


@pytest.mark.parametrize("percent", [0, 1, 20, 50, 80, 99, 100])
def test_the_share_of_training_is_the_percentage(percent: int) -> None:
    share = sum(Split(percent, KEYS).side(subject) == "training" for subject in SUBJECTS) / len(SUBJECTS)
    assert share == pytest.approx(percent / 100, abs=0.015)
    if percent in {0, 100}:
        assert share == percent / 100


def test_a_higher_percentage_only_adds_to_training() -> None:
    lower, higher = ({subject for subject in SUBJECTS if Split(percent, KEYS).side(subject) == "training"} for percent in (20, 80))
    assert lower < higher


def test_another_key_is_another_split() -> None:
    other = KeyRing(2, {"split": bytes(32)})
    changed = sum(Split(50, KEYS).side(subject) != Split(50, other).side(subject) for subject in SUBJECTS)
    assert changed / len(SUBJECTS) == pytest.approx(0.5, abs=0.02)


def test_the_first_percentage_is_the_hubs() -> None:
    store = MemoryObjectStore()
    assert not check_split(store, KEYS, 80)
    assert fix_split(store, KEYS, 80) == Split(80, KEYS)
    assert fix_split(store, KEYS, 80) == Split(80, KEYS)
    with pytest.raises(Refuse, match="is 80 in this hub and cannot be 70: ask for 80"):
        fix_split(store, KEYS, 70)


def test_another_key_stops_the_process() -> None:
    store = MemoryObjectStore()
    fix_split(store, KEYS, 80)
    with pytest.raises(StopProcess, match="subjects would change sides"):
        fix_split(store, KeyRing(2, {"split": bytes(32)}), 80)


def test_what_is_kept_of_the_key_is_no_subjects_hash() -> None:
    store = MemoryObjectStore()
    fix_split(store, KEYS, 80)
    kept = store.get("research", "exports/split.json")
    assert KEYS.hmac("split", "check").hex().encode() not in kept
    assert KEYS.keys["split"].hex().encode() not in kept
