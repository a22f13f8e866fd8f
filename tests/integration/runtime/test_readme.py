"""The README's example is a whole service: run it as it stands there."""

import hashlib
import re
import secrets
import subprocess
import sys
from pathlib import Path

from hub_events import TOPICS, Event
from hub_events.types import ObjectReference, StudyDeidentified
from hub_runtime import EventProducer, create_topics, kafka_config
from support.parts import ROOT, S3
from support.runtime import event_of, free_port, read, settings_for, until


def test_the_example_of_the_readme_runs(kafka: str, s3: S3, tmp_path: Path) -> None:
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "libs/runtime/README.md").read_text(encoding="utf-8"), re.DOTALL)
    program = tmp_path / "example.py"
    program.write_text(example, encoding="utf-8")
    config = kafka_config(settings_for(kafka))
    create_topics(config, topics=[topic for name, topic in TOPICS.items() if name.startswith("research.study.")])
    study = f"2.25.{secrets.randbits(60)}"
    body = b"{}"
    s3.store().put("research", f"manifests/{study}/here.json", body)
    with EventProducer(settings_for(kafka)) as producer:
        producer.produce(*(_deidentified(study, name, body) for name in ("here", "nowhere")))

    port = free_port()
    environment = {
        "HUB_KAFKA_BOOTSTRAP_SERVERS": kafka,
        "HUB_S3_ENDPOINT": s3.endpoint,
        "HUB_S3_ACCESS_KEY": s3.access_key,
        "HUB_S3_SECRET_KEY": s3.secret_key,
        "HUB_HEALTH_PORT": str(port),
        "HUB_LOG_STRICT": "1",
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, str(program)], env=environment, stderr=log)
    try:
        mine: list[str] = []

        def both() -> bool:
            events = [
                event_of(message)
                for topic in ("research.study.indexed", "research.study.deidentified.dlq")
                for message in read(kafka, topic, 0)
            ]
            mine[:] = [event.type for event in events if event.key == study]
            return len(mine) == 2

        until(both, 30, (tmp_path / "log").read_text)
        assert mine == ["hub.study.indexed.v1", "hub.dead-letter.v1"]
    finally:
        process.terminate()
        assert process.wait(20) == 0


def _deidentified(study: str, name: str, body: bytes) -> Event[StudyDeidentified]:
    reference = ObjectReference(
        bucket="research", key=f"manifests/{study}/{name}.json", sha256=hashlib.sha256(body).hexdigest(), size=len(body)
    )
    data = StudyDeidentified(
        research_study_uid=study,
        source="k7f3a9c21b",
        subject="Covid0a1b2c3d4e5f60718293",
        revision=1,
        instances=1,
        held_back=0,
        profile="basic-modified-dates@0123456789ab",
        key_version=1,
        manifest=reference,
    )
    return Event.first("research.study.deidentified", study, data, source="test")
