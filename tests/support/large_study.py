"""A study of many instances through assembler and closer, and what it cost."""

import time
from pathlib import Path
from typing import cast

from hub_dicom.keys import manifest_key
from hub_dicom.manifest import StudyManifest
from hub_events.types import StudyReceived
from hub_ingest.closer_revisions import BUCKET
from support.ingest import RECEIVED, Ingest, ingest, wait_for
from support.parts import S3


def revisions(hub: Ingest, study: str) -> list[StudyReceived]:
    return cast("list[StudyReceived]", hub.said(RECEIVED, study))


def manifest_of(s3: S3, hub: Ingest, study: str, revision: int) -> StudyManifest:
    return StudyManifest.model_validate_json(s3.store().get(BUCKET, manifest_key(hub.trust, study, revision)))


def large_study_passes(broker: str, s3: S3, folder: Path, instances: int) -> None:
    """Put a study of so many instances, close it, and see what it cost."""
    with ingest(broker, s3, folder) as hub:
        assembler, closer = hub.start("assembler").wait_ready(), hub.start("closer").wait_ready()
        study = hub.study()
        data = hub.put(study, range(instances))
        started = time.monotonic()
        hub.announce(data)
        wait_for("its revision", lambda: any(said.instances == instances for said in revisions(hub, study)), 240)
        seconds = time.monotonic() - started
        said = revisions(hub, study)
        assert len({item.digest for item in said}) == len({item.revision for item in said})
        manifest = manifest_of(s3, hub, study, said[-1].revision)
        assert len(manifest.instances) == instances
        memory = {
            name: process.metric("process_resident_memory_bytes") / 2**20
            for name, process in (("assembler", assembler), ("closer", closer))
        }
        assert memory["assembler"] < 250, memory
        assert memory["closer"] < 400, memory
        print(f"{instances} instances: {seconds:.1f} s to the revision, resident {memory}")
