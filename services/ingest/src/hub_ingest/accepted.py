"""The storage SOP classes that this hub takes, whichever way they come."""

from typing import Final

from hub_dicom.storage import RETIRED_STORAGE_SOP_CLASSES
from pynetdicom.presentation import AllStoragePresentationContexts

STORAGE_SOP_CLASSES: Final = frozenset(
    {str(context.abstract_syntax) for context in AllStoragePresentationContexts} | set(map(str, RETIRED_STORAGE_SOP_CLASSES))
)
