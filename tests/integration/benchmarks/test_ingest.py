"""The benchmark of the way in runs, and writes what it measured. Its figures are for `make bench-ingest`."""

import json
import subprocess
from pathlib import Path

import pytest
from support.parts import ROOT

SYSTEMS = {"storescp", "Orthanc", "pynetdicom", "hub disk", "hub disk and SHA-256", "hub durable", "PUT and produce"}
WORKERS = {f"{name}, 2 workers" for name in ("hub disk", "hub disk and SHA-256", "hub durable")}
FIELDS = {
    "work",
    "system",
    "instances_per_second",
    "megabytes_per_second",
    "ratio_to_storescp",
    "ratio_to_orthanc",
    "cpu_ms_per_instance",
    "peak_rss_mb",
}


@pytest.mark.peers
@pytest.mark.timeout(600)
def test_the_benchmark_measures_everyone(tmp_path: Path) -> None:
    result = tmp_path / "ingest.json"
    done = subprocess.run(
        ["make", "--no-print-directory", "bench-ingest", f"BENCH=--quick --result {result}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    rows = found["rows"]
    by_work: dict[str, set[str]] = {}
    for row in rows:
        assert row.keys() == FIELDS
        assert row["instances_per_second"] > 0
        assert row["megabytes_per_second"] > 0
        assert row["ratio_to_storescp"] > 0
        assert row["ratio_to_orthanc"] > 0
        assert row["cpu_ms_per_instance"] >= 0
        assert row["peak_rss_mb"] > 5
        by_work.setdefault(row["work"], set()).add(row["system"])
    assert by_work == {
        "8 CT, 1 sender": SYSTEMS,
        "8 CT, 4 senders": SYSTEMS | WORKERS,
        "2 multi-frame, 1 sender": SYSTEMS,
    }
    assert {row["ratio_to_storescp"] for row in rows if row["system"] == "storescp"} == {1.0}
    assert {bar["against"] for bar in found["bars"]} == {"storescp", "Orthanc", "PUT and produce"}
    assert all(row["system"] in done.stdout for row in rows)
