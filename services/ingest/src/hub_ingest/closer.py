"""ingest.closer says what a quiet study consists of, and announces it as a numbered revision with a manifest.

The message path is `close_study` in closer_revisions.py; the sweep beside it finds what no event led to a manifest.
"""

from typing import cast

from hub_dicom.trusts import Trusts
from hub_events import Event
from hub_events.types import StudyQuiet
from hub_runtime import Metric, Service, open_store, run_consumer, run_service
from pydantic import BaseModel

from hub_ingest import sweep
from hub_ingest.closer_revisions import SERVICE, close_study
from hub_ingest.closer_settings import CloserSettings

QUIET = "identifiable.study.quiet"
METRICS = (
    Metric("hub_closer_nothing_total", "counter", "Quiet studies of which the store holds nothing any more: no revision, no event."),
    *sweep.METRICS,
)


def serve(service: Service[CloserSettings]) -> None:
    """Close the studies that are called quiet, and sweep beside it, until the service is told to stop."""
    settings = service.settings
    store = open_store(settings)
    trusts = Trusts.load(settings.trusts_file)

    def handle(event: Event[BaseModel]) -> list[Event[BaseModel]]:
        outputs = close_study(cast("Event[StudyQuiet]", event), store)
        if not outputs:
            service.metrics.count("hub_closer_nothing_total")
        return outputs

    if settings.sweep_seconds:
        service.start_thread("sweep", lambda: sweep.run(service, store, trusts))
    run_consumer(service, group=SERVICE, topics=[QUIET], handle=handle, store=store, concurrency=settings.closer_concurrency)


def main() -> None:
    """The command `hub-closer`."""
    run_service(SERVICE, CloserSettings, serve, metrics=METRICS)


if __name__ == "__main__":
    main()
