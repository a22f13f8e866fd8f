"""One partition's backlog: order per key, the finished prefix, the position at the end, the count of deaths."""

import pytest
from hub_events import UnreadableEvent
from hub_runtime.backlog import LIMIT, Backlog, Item, read_deaths, write_deaths
from hub_runtime.records import Record


def item(offset: int, key: str) -> Item:
    return Item(Record("t", 0, offset, key.encode(), b"", (), 0), UnreadableEvent("not-read", "a test's"))


def known(committed: int | None = None, metadata: str | None = None) -> Backlog:
    backlog = Backlog(("t", 0))
    backlog.learn(committed, metadata)
    return backlog


def taken(backlog: Backlog) -> list[Item]:
    found = []
    while (one := backlog.take()) is not None:
        found.append(one)
    return found


def test_nothing_is_handed_out_before_the_group_s_position_is_known() -> None:
    backlog = Backlog(("t", 0))
    backlog.add(item(0, "a"))
    assert backlog.take() is None
    backlog.learn(None, None)
    assert backlog.take() is not None


def test_one_key_is_handed_out_one_at_a_time_and_in_order() -> None:
    backlog = known()
    a0, b1, a2 = (item(0, "a"), item(1, "b"), item(2, "a"))
    for one in (a0, b1, a2):
        backlog.add(one)
    assert taken(backlog) == [a0, b1]
    backlog.finish(b1, (), None)
    assert taken(backlog) == []
    backlog.finish(a0, (), None)
    assert taken(backlog) == [a2]


def test_what_is_put_back_comes_first_and_keeps_its_key_waiting() -> None:
    backlog = known()
    for one in (a0 := item(0, "a"), item(1, "a")):
        backlog.add(one)
    assert taken(backlog) == [a0]
    backlog.put_back(a0)
    assert taken(backlog) == [a0]


def test_only_the_finished_prefix_is_committed() -> None:
    backlog = known(10)
    items = [item(offset, key) for offset, key in ((10, "a"), (11, "b"), (14, "c"), (15, "d"))]
    for one in items:
        backlog.add(one)
    taken(backlog)
    backlog.finish(items[1], (), None)
    backlog.finish(items[3], (), None)
    assert backlog.next_commit() is None
    backlog.finish(items[0], (), None)
    commit = backlog.next_commit()
    assert commit is not None
    # The gap between 11 and 14 holds control records: the position stands at what is read next.
    assert (commit.offset, commit.items) == (14, items[:2])
    backlog.confirm(commit)
    assert backlog.next_commit() is None
    assert len(backlog) == 2


def test_an_unconfirmed_commit_is_offered_again() -> None:
    backlog = known()
    backlog.add(one := item(0, "a"))
    backlog.take()
    backlog.finish(one, (), None)
    first, second = backlog.next_commit(), backlog.next_commit()
    assert first == second
    assert first is not None
    assert first.offset == 1


def test_the_end_is_committed_only_when_everything_before_it_is() -> None:
    backlog = known(3)
    backlog.add(one := item(3, "a"))
    backlog.reached(6)
    backlog.take()
    assert backlog.next_commit() is None
    backlog.finish(one, (), None)
    commit = backlog.next_commit()
    assert commit is not None
    assert commit.offset == 6
    backlog.confirm(commit)
    assert backlog.next_commit() is None
    backlog.reached(8)
    later = backlog.next_commit()
    assert later is not None
    assert (later.offset, later.items) == (8, [])


def test_the_end_is_not_committed_before_the_group_s_position_is_known() -> None:
    backlog = Backlog(("t", 0))
    backlog.reached(5)
    assert backlog.next_commit() is None
    backlog.learn(5, None)
    assert backlog.next_commit() is None


def test_a_death_is_committed_before_the_record_is_handed_out_again() -> None:
    backlog = known(7)
    backlog.add(one := item(7, "a"))
    backlog.take()
    backlog.died(one)
    assert backlog.take() is None
    commit = backlog.next_commit()
    assert commit is not None
    assert (commit.offset, commit.metadata, commit.items) == (7, "deaths 7=1", [])
    backlog.confirm(commit)
    assert backlog.take() is one

    successor = known(7, commit.metadata)
    successor.add(again := item(7, "a"))
    assert again.deaths == 1
    successor.add(other := item(8, "b"))
    assert other.deaths == 0
    assert taken(successor) == [again, other]
    successor.finish(again, (), "handler-died")
    done = successor.next_commit()
    assert done is not None
    assert done.metadata == ""


def test_a_blocked_key_waits_for_the_call_that_still_runs() -> None:
    backlog = Backlog(("t", 0), blocked={b"a"})
    backlog.learn(None, None)
    for one in (a0 := item(0, "a"), b1 := item(1, "b")):
        backlog.add(one)
    assert taken(backlog) == [b1]
    backlog.blocked.discard(b"a")
    assert taken(backlog) == [a0]


def test_discarding_marks_every_record_and_forgets_it() -> None:
    backlog = known()
    items = [item(offset, "a") for offset in range(3)]
    for one in items:
        backlog.add(one)
    assert backlog.discard() == 3
    assert all(one.discarded for one in items)
    assert len(backlog) == 0


def test_a_full_backlog_is_resumed_only_when_half_empty() -> None:
    backlog = known()
    for offset in range(LIMIT):
        assert not backlog.full
        backlog.add(item(offset, str(offset)))
    assert backlog.full
    backlog.paused = True
    for one in taken(backlog)[: LIMIT // 2]:
        backlog.finish(one, (), None)
    assert backlog.full
    commit = backlog.next_commit()
    assert commit is not None
    backlog.confirm(commit)
    assert backlog.full
    backlog.paused = False
    assert not backlog.full


@pytest.mark.parametrize(
    ("metadata", "deaths"),
    [("deaths 17=2 19=1", {17: 2, 19: 1}), (None, {}), ("", {}), ("from another tool", {}), ("deaths x=1 5=y 6", {})],
)
def test_deaths_are_read_from_a_commit_s_metadata(metadata: str | None, deaths: dict[int, int]) -> None:
    assert read_deaths(metadata) == deaths
    assert read_deaths(write_deaths(deaths)) == deaths


def test_the_count_fits_into_a_commit_s_metadata_even_for_a_full_backlog() -> None:
    assert len(write_deaths({10**12 + offset: 3 for offset in range(2 * LIMIT)})) < 4096
