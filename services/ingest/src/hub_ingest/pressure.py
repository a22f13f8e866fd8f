"""What stands in the way of taking instances, known before a sender waits for it: store, broker and disk are asked again and again.

An instance that met a part that is away says so here. So the first one of an outage waits for the part, and those after it do not.
"""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from hub_objectstore import ObjectStore
from hub_runtime import logger
from hub_runtime.health import Health
from hub_runtime.service import Service
from hub_runtime.settings import ServiceSettings, kafka_config

from hub_ingest.arrival import Part, free_bytes

REASONS: Final[dict[Part, str]] = {"store": "store-unavailable", "broker": "broker-unavailable", "disk": "no-space"}
"""What log and metrics call it."""

_TOPIC: Final = "identifiable.instance.received"
_PROBE_SECONDS: Final = 5.0
_AWAY_PROBE_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.2
_ORDER: Final[tuple[Part, ...]] = ("disk", "store", "broker")

AnySettings = TypeVar("AnySettings", bound=ServiceSettings)
log = logger()


class Pressure:
    """Which part is away now. Safe from many threads."""

    def __init__(self, health: Health) -> None:
        """Nothing is known to be away; `health` is told what is, under the part's name."""
        self._health = health
        self._away: frozenset[Part] = frozenset()
        self._lock = threading.Lock()
        self._woken: dict[Part, threading.Event] = {part: threading.Event() for part in _ORDER}

    def away(self, *, whole: bool = False) -> Part | None:
        """What an instance that comes now would wait for in vain; of one that is `whole` here, the disk is no longer asked."""
        away = self._away
        return next((part for part in _ORDER if part in away and not (whole and part == "disk")), None)

    def met(self, part: Literal["store", "broker"]) -> None:
        """An instance has just waited for `part` in vain. It counts as away until it is asked, which is now."""
        self._set(part, "an instance waited for it in vain")
        self._woken[part].set()

    def watch(self, part: Part, fault: Callable[[], str | None], stop: threading.Event) -> None:
        """Ask a part, until `stop`: `fault` says what is wrong with it, blocking for seconds at most."""
        woken = self._woken[part]
        while not stop.is_set():
            woken.clear()
            found = fault()
            self._set(part, found)
            left = _PROBE_SECONDS if found is None and part != "disk" else _AWAY_PROBE_SECONDS
            while left > 0 and not woken.is_set() and not stop.wait(_LOOK_SECONDS):
                left -= _LOOK_SECONDS

    def _set(self, part: Part, fault: str | None) -> None:
        with self._lock:
            before = self._away
            if fault is None:
                self._away -= {part}
                self._health.ready(part)
            else:
                self._away |= {part}
                self._health.unready(part, fault)
            changed = self._away != before
        if changed and fault is None:
            log.info("instances are taken again as far as this part goes", state=part)
        elif changed:
            log.warning("instances are refused early: a part is away", state=part, reason=REASONS[part])


def watch_parts(
    service: Service[AnySettings], store: ObjectStore, pressure: Pressure, *, folder: Path | None = None, keep_free_bytes: int = 0
) -> None:
    """Ask store and broker, and whether `folder` has `keep_free_bytes`, from threads of their own until the service's `stop`.

    Store and broker are unready until they have answered once; instances are not kept waiting for that.
    """
    admin = AdminClient(kafka_config(service.settings) | {"socket.timeout.ms": 3000})
    faults: dict[Part, Callable[[], str | None]] = {"store": lambda: _store_fault(store), "broker": lambda: _broker_fault(admin)}
    for part in faults:
        service.health.unready(part, "not asked yet")
    if folder is not None:
        faults["disk"] = lambda: _disk_fault(folder, keep_free_bytes)
    for part, fault in faults.items():
        service.start_thread(f"readiness-{part}", partial(pressure.watch, part, fault, service.stop))


def _store_fault(store: ObjectStore) -> str | None:
    return None if store.reachable() else "the object store does not answer or refuses this identity"


def _broker_fault(admin: AdminClient) -> str | None:
    try:
        known = admin.list_topics(_TOPIC, timeout=3.0).topics.get(_TOPIC)
    except KafkaException:
        return "the broker does not answer"
    return f"the topic {_TOPIC} is not there or not allowed" if known is None or known.error is not None else None


def _disk_fault(folder: Path, keep_free_bytes: int) -> str | None:
    try:
        free = free_bytes(folder)
    except OSError:
        return "the data folder is not there"
    return None if free >= keep_free_bytes else "the data folder's file system has less room than is to be kept free"
