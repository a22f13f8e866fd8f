"""The storage SOP classes that this hub takes, whichever way they come, and those that a trust's own rules add or leave out."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

from hub_dicom import Trust
from hub_dicom.storage import RETIRED_STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES, is_private_sop_class
from pynetdicom.presentation import AllStoragePresentationContexts, build_context

STORAGE_SOP_CLASSES: Final = frozenset(
    {str(context.abstract_syntax) for context in AllStoragePresentationContexts} | set(map(str, RETIRED_STORAGE_SOP_CLASSES))
)


def takes(trust: Trust, sop_class_uid: str) -> bool:
    """Whether instances of a SOP class are taken in from a trust. What it has quarantined is: that happens afterwards."""
    if sop_class_uid in trust.refuse_sop_classes:
        return False
    if sop_class_uid in STORAGE_SOP_CLASSES or sop_class_uid in trust.quarantine_sop_classes:
        return True
    return trust.private_sop_classes == "quarantine" and is_private_sop_class(sop_class_uid)


def offered(trust: Trust, proposed: Iterable[str], supported: Iterable[Any]) -> list[Any]:
    """What an association of this trust is offered: of the supported contexts those that it proposes, by the trust's rules, and private ones.

    Any other abstract syntax is rejected with result 3 (PS3.8 table 9-18).
    """
    known = {str(context.abstract_syntax): context for context in supported}
    wanted = dict.fromkeys(proposed)
    others = [uid for uid in wanted if uid in known and uid not in STORAGE_SOP_CLASSES]
    return [known.get(uid) or _storage_context(uid) for uid in (*others, *(uid for uid in wanted if takes(trust, uid)))]


@lru_cache(maxsize=256)
def _storage_context(uid: str) -> Any:  # noqa: ANN401 - pynetdicom has no types
    return build_context(uid, list(TRANSFER_SYNTAXES))
