"""Members that come, go, stall and die: nothing is lost and nothing is doubled, counted from outside."""

import json
import os
import signal
import time

import psutil
from hub_events.types import DeadLettered
from support.runtime import Bench, event_of, keys, numbers, read, until
from support.runtime_service import Work


def test_a_process_that_lost_its_partitions_commits_nothing(made: Bench) -> None:
    first = made.start()
    until(lambda: first.metric("hub_partitions_assigned") == 4, 15, made.logs)
    made.put([(f"2.25.{n}", Work(n=n, seconds=2)) for n in range(4)])
    until(lambda: len(made.journal()) >= 4, 10, made.logs)
    first.signal(signal.SIGSTOP)

    made.start()
    assert numbers(made.outputs(4)) == [0, 1, 2, 3]
    first.signal(signal.SIGCONT)
    # Its handlers have long ended: the first thing it would do is commit.
    until(lambda: "partitions lost" in first.log_text(), 15, made.logs)
    until(first.ready, 20, made.logs)

    assert numbers(made.outputs(4, settle=1)) == [0, 1, 2, 3]
    assert first.metric("hub_events_produced_total") == 0
    assert first.metric("hub_records_discarded_total") == 4
    assert all(made.begun(n) == 2 for n in range(4))
    until(lambda: made.lag() == 0, 10, made.logs)


def test_members_come_and_go_and_every_record_comes_out_once(made: Bench) -> None:
    first = made.start(test_concurrency=2)
    key = keys(40)
    made.put([(next(key), Work(n=n, seconds=0.05)) for n in range(600)])
    second = made.start(test_concurrency=2)
    until(lambda: second.metric("hub_records_handled_total") > 20, 20, made.logs)
    assert len(made.outputs(0)) < 500, "the second member came when there was nothing left to share"
    assert first.stop() == 0

    assert numbers(made.outputs(600, settle=1)) == list(range(600))
    # What was in a handler when its partition moved was finished and committed there. Begun again is only what stood behind a gap.
    assert len([line for line in made.journal() if line["what"] == "begin"]) < 620
    until(lambda: made.lag() == 0, 10, made.logs)


def test_sigterm_finishes_what_runs_commits_it_and_leaves_the_rest(made: Bench) -> None:
    first = made.start(test_concurrency=2)
    made.put([(f"2.25.{n}", Work(n=n, seconds=1.5)) for n in range(8)])
    until(lambda: len(made.journal()) == 2, 10, made.logs)
    began = time.monotonic()
    assert first.stop() == 0

    assert 0.5 < time.monotonic() - began < 20
    running = {line["n"] for line in made.journal()}
    assert {line["n"] for line in made.journal() if line["what"] == "end"} == running
    assert set(numbers(made.outputs(0))) <= running
    made.start(test_concurrency=8)
    assert numbers(made.outputs(8)) == list(range(8))


def test_a_handler_that_outlasts_the_drain_is_left_behind_and_not_committed(made: Bench) -> None:
    first = made.start(drain_seconds=1)
    made.put([("2.25.1", Work(n=1, seconds=60))])
    until(lambda: made.begun(1) == 1, 10, made.logs)
    assert first.stop(30) == 0
    assert [line["what"] for line in made.journal()] == ["begin"], made.logs()
    assert made.outputs(0) == []
    assert made.lag() == 1


def test_two_processes_with_one_replica_id_fence_each_other_out(made: Bench) -> None:
    first = made.start(replica="same")
    made.put([("2.25.1", Work(n=1))])
    made.outputs(1)
    made.start(replica="same")
    made.put([(f"2.25.{n}", Work(n=n)) for n in range(2, 40)])

    until(lambda: first.popen.poll() is not None, 20, made.logs)
    assert first.popen.returncode == 75
    assert numbers(made.outputs(39)) == list(range(1, 40))


def test_a_kill_in_the_middle_of_a_transaction_blocks_readers_less_than_five_seconds(made: Bench) -> None:
    stall = made.folder / "stall"
    first = made.start(replica="a", test_stall=stall)
    made.put([(f"2.25.{n}", Work(n=n)) for n in range(20)])
    until(stall.exists, 15, made.logs)
    assert made.outputs(0) == []
    first.kill()
    killed = time.monotonic()
    made.start(replica="a", wait=False)
    made.put([(f"2.25.{n}", Work(n=1000 + n)) for n in range(20)], topic=made.out)

    # These stand behind the open transaction: they are seen when it ends, which its id's next owner sees to.
    assert min(numbers(made.outputs(20))) == 1000
    assert time.monotonic() - killed < 9  # the broker itself would take ten
    assert numbers(made.outputs(40)) == [*range(20), *range(1000, 1020)]


def test_a_child_that_dies_three_times_is_a_dead_letter_also_over_a_restart(made: Bench) -> None:
    first = made.start(test_children=True, test_concurrency=2)
    made.put([("2.25.1", Work(n=1, do="die-hang-die")), ("2.25.1", Work(n=2)), ("2.25.2", Work(n=3))])
    until(lambda: made.begun(1) == 2, 20, made.logs)
    first.kill()
    made.start(test_children=True, test_concurrency=2, replica=0)

    [message] = read(made.kafka, made.dlq, 1, why=made.logs)
    letter = event_of(message).data
    assert isinstance(letter, DeadLettered)
    assert (letter.reason, letter.attempts) == ("handler-died", 3)
    # One death before the restart, a hang that counts for nothing, two deaths after it.
    assert made.begun(1) == 4
    assert numbers(made.outputs(2)) == [2, 3]
    assert made.s3.store().stat(letter.object.bucket, letter.object.key) is not None
    until(lambda: made.lag() == 0, 10, made.logs)


def test_children_have_a_memory_bound_are_recycled_and_die_with_their_parent(made: Bench) -> None:
    process = made.start(test_children=True, test_concurrency=1, test_memory=800_000_000, test_recycle_after=2)
    made.put([("2.25.1", Work(n=n)) for n in range(4)])
    made.put([("2.25.1", Work(n=4, do="memory")), ("2.25.1", Work(n=6, seconds=30))])

    letters = [event_of(message).data for message in read(made.kafka, made.dlq, 1, why=made.logs)]
    assert [letter.reason for letter in letters] == ["handler-died"]
    assert numbers(made.outputs(4)) == [0, 1, 2, 3]
    pids = [line["pid"] for line in made.journal() if line["what"] == "begin" and line["n"] < 4]
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert process.popen.pid not in pids
    assert process.metric("hub_handler_deaths_total") == 3
    until(lambda: made.begun(6) == 1, 20, made.logs)
    last = made.journal()[-1]["pid"]
    assert _alive(last)
    process.kill()
    until(lambda: not _alive(last), 5)


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_workers_are_replicas_restarted_when_they_die_and_stopped_together(made: Bench) -> None:
    parent = made.start("--workers", "2", wait=False, health_port=0)
    key = keys(40)
    made.put([(next(key), Work(n=n, seconds=0.02)) for n in range(100)])
    assert numbers(made.outputs(100)) == list(range(100))
    replicas = _workers(made)
    assert set(replicas) == {"0-0", "0-1"}
    assert len({pid for pids in replicas.values() for pid in pids}) == 2

    killed = replicas["0-1"][0]
    os.kill(killed, signal.SIGKILL)
    until(lambda: len(_workers(made).get("0-1", [])) == 2, 15, made.logs)
    made.put([(next(key), Work(n=n)) for n in range(100, 140)])
    assert numbers(made.outputs(140)) == list(range(140))

    pids = [pid for pids in _workers(made).values() for pid in pids]
    assert parent.stop() == 0
    assert not any(_alive(pid) for pid in pids)

    again = made.start("--workers", "2", wait=False, health_port=0)
    until(lambda: len(_workers(made, again.log_text())) == 2, 15, made.logs)
    pids = [pid for pids in _workers(made, again.log_text()).values() for pid in pids]
    again.kill()
    until(lambda: not any(_alive(pid) for pid in pids), 15)


def _workers(made: Bench, text: str | None = None) -> dict[str, list[int]]:
    """Replica to the pids that started as it, from the logs."""
    found: dict[str, list[int]] = {}
    for line in map(json.loads, (made.logs() if text is None else text).splitlines()):
        if line["event"] == "started":
            found.setdefault(line["replica"], []).append(line["pid"])
    return found
