"""The sweep: objects that no event led to a manifest are announced again. The store is the truth; events only say when.

It finds what a lost table, a lost topic or a receiver killed between store and broker left behind. One announcement a study is enough:
it wakes the study, and the closer lists all of it.
"""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby

from hub_dicom.keys import parse_instance_key, trust_prefix
from hub_dicom.trusts import Trust, Trusts
from hub_events import Event
from hub_events.types import InstanceReceived, ObjectReference
from hub_objectstore import ObjectStore, StoreUnavailable
from hub_runtime import BrokerUnavailable, EventProducer, Metric, Service, logger

from hub_ingest.closer_revisions import BUCKET, SERVICE, Found, latest_revision
from hub_ingest.closer_settings import CloserSettings

INSTANCES = "identifiable.instance.received"
METRICS = (
    Metric(
        "hub_sweep_announced_total",
        "counter",
        "Studies announced because the store has an object of theirs that no manifest names.",
        ("trust",),
    ),
    Metric("hub_sweep_failures_total", "counter", "Sweeps of a trust that did not end; the next sweep starts anew.", ("trust", "reason")),
    Metric("hub_sweep_seconds", "gauge", "How long the last sweep took."),
)

log = logger()


def run(service: Service[CloserSettings], store: ObjectStore, trusts: Trusts) -> None:
    """Sweep at once and then every `sweep_seconds`, until the service stops. Nothing that a sweep meets stops the service."""
    with EventProducer(service.settings) as producer:
        while not service.stop.is_set():
            started = time.monotonic()
            for trust in trusts.trusts:
                if service.stop.is_set():
                    return
                sweep_trust(trust, store, producer.produce, service)
            service.metrics.set("hub_sweep_seconds", time.monotonic() - started)
            service.stop.wait(service.settings.sweep_seconds)


def sweep_trust(
    trust: Trust, store: ObjectStore, produce: Callable[[Event[InstanceReceived]], None], service: Service[CloserSettings]
) -> None:
    """Announce what one trust's part of the store holds and no manifest names. A failure is counted and logged; the next sweep mends it."""
    announced, reason = 0, ""
    try:
        for event in forgotten(store, trust, now=datetime.now(UTC)):
            if service.stop.is_set():
                break
            produce(event)
            announced += 1
            service.metrics.count("hub_sweep_announced_total", trust=trust.name)
    except StoreUnavailable:
        reason = "store-unavailable"
    except BrokerUnavailable:
        reason = "broker-unavailable"
    except Exception:
        log.exception("the sweep of a trust failed", trust=trust.name)
        reason = "unexpected-error"
    if reason:
        service.metrics.count("hub_sweep_failures_total", trust=trust.name, reason=reason)
        log.warning("the sweep of a trust did not end", trust=trust.name, reason=reason)
    if announced:
        log.info("the sweep announced studies", trust=trust.name, studies=announced)


def forgotten(store: ObjectStore, trust: Trust, *, now: datetime) -> Iterator[Event[InstanceReceived]]:
    """One announcement for each study of the trust that has an object older than the quiet time and in no manifest.

    Streams the listing; at most one study's manifest is in memory. Manifests are cumulative, so the newest one tells.

    Raises:
        StoreUnavailable: the store is away; what was found before has been handed out.
    """
    before = now - timedelta(seconds=trust.quiet_seconds)
    for study, objects in groupby(_instances(store, trust), key=lambda item: item.name.study_instance_uid):
        closed: set[str] | None = None
        for item in objects:
            if item.last_modified > before:
                continue
            if closed is None:
                latest = latest_revision(store, trust.name, study)
                closed = {entry.sha256 for entry in (*latest.manifest.instances, *latest.manifest.variants)} if latest else set()
            if item.name.sha256 not in closed:
                yield announcement(item)
                break


def announcement(item: Found) -> Event[InstanceReceived]:
    """That an object is there, as the receiver would have said, without what only its content tells."""
    name = item.name
    data = InstanceReceived(
        trust=name.trust,
        study_instance_uid=name.study_instance_uid,
        series_instance_uid=name.series_instance_uid,
        sop_instance_uid=name.sop_instance_uid,
        object=ObjectReference(bucket=BUCKET, key=item.key, sha256=name.sha256, size=item.size),
        origin="sweep",
    )
    return Event.first(INSTANCES, name.study_instance_uid, data, source=SERVICE)


def _instances(store: ObjectStore, trust: Trust) -> Iterator[Found]:
    for info in store.list(BUCKET, trust_prefix(trust.name)):
        try:
            yield Found(info.key, parse_instance_key(info.key), info.size, info.last_modified)
        except ValueError:
            continue  # no instance's key: not ours
