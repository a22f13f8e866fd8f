"""Which events of a topic are the hub's own, where others may write too.

A broker's access rules say who may write a topic, not what: a router that may announce its instances can claim any origin and any source.
So the hub's own services seal what they say there, with a key that only they have; what bears no seal is somebody else's, whatever it claims.
The seal is the CloudEvents extension attribute `seal`.
"""

import hashlib
import hmac
from dataclasses import replace
from typing import Final, TypeVar

from pydantic import BaseModel

from hub_events.envelope import Event

SEALED_TOPICS: Final = frozenset({"identifiable.instance.received"})
"""The topics that others than the hub's services may write."""

Data = TypeVar("Data", bound=BaseModel)


def seal(event: Event[Data], key: bytes) -> Event[Data]:
    """The event with a seal over topic, key, id, type and data."""
    return replace(event, seal=_mac(event, key))


def is_sealed(event: Event[Data], key: bytes) -> bool:
    """Whether somebody who has the key sealed this event, as it is."""
    return hmac.compare_digest(_mac(event, key), event.seal)


def _mac(event: Event[Data], key: bytes) -> str:
    parts = (event.topic, event.key, event.id, event.type, event.data.model_dump_json(exclude_unset=True))
    content = b"".join(len(part).to_bytes(4, "big") + part for part in (text.encode() for text in parts))
    return hmac.new(key, content, hashlib.sha256).hexdigest()
