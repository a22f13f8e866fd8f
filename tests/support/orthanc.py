"""Orthanc as a trust's router."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from hub_parts.ports import free_port

ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


@contextmanager
def orthanc(folder: Path, **configuration: Any) -> Iterator[httpx.Client]:
    """A running one and its REST API; without any plugin or DICOM port of its own unless `configuration` says so."""
    assert ORTHANC is not None, "Orthanc is missing: apt-get install orthanc orthanc-dicomweb"
    port = free_port()
    base = {
        "Name": "Router",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "Plugins": [],
        "HttpPort": port,
        "HttpServerEnabled": True,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": False,
        "RemoteAccessAllowed": False,
    }
    (folder / "orthanc.json").write_text(json.dumps(base | configuration))
    with (folder / "orthanc.log").open("w") as output:
        process = subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            deadline = time.monotonic() + 30
            while True:
                with suppress(httpx.TransportError):
                    if client.get("/system").status_code == 200:
                        break
                assert process.poll() is None, (folder / "orthanc.log").read_text()
                assert time.monotonic() < deadline, (folder / "orthanc.log").read_text()
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(30)
