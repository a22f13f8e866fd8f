"""Logs carry what the allow-list names and nothing else."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hub_runtime.logs import FieldNotAllowed, configure_logging, dropped_log_fields, logger


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    yield io.StringIO()
    configure_logging("test", strict=False)
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_field_that_is_not_allowed_never_appears_and_is_counted(stream: io.StringIO) -> None:
    configure_logging("ingest.receiver", replica="2", stream=stream)
    before = dropped_log_fields()
    logger().info("stored", trust="northgate", patient_name="JOHN^SMITH", study_instance_uid="1.2.3")

    assert "SMITH" not in stream.getvalue()
    assert "1.2.3" not in stream.getvalue()
    [line] = lines(stream)
    assert (line["event"], line["trust"], line["service"], line["replica"], line["dropped_fields"]) == (
        "stored",
        "northgate",
        "ingest.receiver",
        "2",
        2,
    )
    assert dropped_log_fields() == before + 2


def test_a_field_that_is_not_allowed_fails_a_test(stream: io.StringIO) -> None:
    configure_logging("test", strict=True, stream=stream)
    with pytest.raises(FieldNotAllowed, match="patient_name"):
        logger().info("stored", patient_name="JOHN^SMITH")
    assert stream.getvalue() == ""


def test_an_exception_is_its_class_and_frames_never_its_text(stream: io.StringIO) -> None:
    configure_logging("test", strict=True, stream=stream)
    try:
        int("JOHN^SMITH")
    except ValueError:
        logger().exception("failed")

    assert "SMITH" not in stream.getvalue()
    [line] = lines(stream)
    assert line["error"] == "ValueError"
    assert line["frames"][-1].startswith("test_logs.py:")


def test_other_libraries_are_heard_without_their_texts(stream: io.StringIO) -> None:
    configure_logging("test", strict=True, stream=stream)
    logging.getLogger("pydicom").warning("Invalid value for VR PN: %s", "JOHN^SMITH")
    logging.getLogger("pydicom").info("JOHN^SMITH")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        configure_logging("test", strict=True, stream=stream)
        warnings.warn("JOHN^SMITH", stacklevel=1)
        logging.captureWarnings(False)

    assert "SMITH" not in stream.getvalue()
    assert [line["library"] for line in lines(stream)] == ["pydicom", "py.warnings"]


def test_values_are_plain_and_short(stream: io.StringIO) -> None:
    configure_logging("test", strict=True, stream=stream)
    logger().info("odd", reason="x" * 1000, count=3, error=None, partitions=[1, 2], state=object)
    [line] = lines(stream)
    assert len(line["reason"]) == 200
    assert (line["count"], line["error"], line["partitions"]) == (3, None, [1, 2])
    assert isinstance(line["state"], str)
