"""The broker is killed, or stands still, while a service is in the middle of its work: everything comes out once."""

import signal
import time
from pathlib import Path

import pytest
from support.parts import s3_of, start_parts
from support.runtime import bench, keys, numbers, until
from support.runtime_service import Work


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_the_same_process_goes_on_when_the_broker_is_back(how: str, tmp_path: Path) -> None:
    with start_parts("kafka", "s3") as parts, bench(parts.kafka_bootstrap_servers, s3_of(parts), tmp_path) as made:
        process = made.start()
        key = keys(20)
        made.put([(next(key), Work(n=n, seconds=0.05)) for n in range(600)])
        until(lambda: len(made.journal()) > 100, 20, made.logs)
        if how == "killed":
            # Its supervisor starts it again.
            parts.supervisor.signal("kafka", signal.SIGKILL)
        else:
            parts.supervisor.signal("kafka", signal.SIGSTOP)
            try:
                time.sleep(15)
                assert process.get("/readyz")[0] == 503
                assert process.get("/livez")[0] == 200
            finally:
                parts.supervisor.signal("kafka", signal.SIGCONT)

        assert numbers(made.outputs(600, 120, settle=2)) == list(range(600))
        until(lambda: made.lag() == 0, 20, made.logs)
        until(process.ready, 20, made.logs)
        assert process.popen.poll() is None
