"""A study of 20,000 instances, more than any scanner makes, through assembler and closer."""

from pathlib import Path

import pytest
from hub_runtime import create_topics
from support.large_study import large_study_passes
from support.parts import s3_of, start_parts


@pytest.mark.timeout(900)
def test_a_study_of_20000_instances_passes(tmp_path: Path) -> None:
    with start_parts("kafka", "s3") as parts:
        create_topics({"bootstrap.servers": parts.kafka_bootstrap_servers})
        large_study_passes(parts.kafka_bootstrap_servers, s3_of(parts), tmp_path, 20_000)
