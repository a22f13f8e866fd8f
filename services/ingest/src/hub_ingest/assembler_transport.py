"""Three holes in faust-streaming 0.15.3, closed. Through each it throws records away that it has read at the start or in a rebalance.

- At the end of a table's recovery it lets the streams' partitions flow, then seeks each to its committed offset, then empties the queues:
  what was read in between is gone. Here they flow only after the queues were emptied.
- It hands the set of partitions it wants to read to the client by reference. When recovery empties that set while the client waits, the
  client takes an empty set for all partitions, and faust drops what it did not want. Here the client gets a copy.
- A partition without a commit, or with one at 0, is not sought back, so what was dropped of it stays dropped, and the next commit passes
  it over. Here it is sought to its beginning.

For a partition with a commit the drop ends with the process, because faust commits nothing behind a gap; for a new one it does not.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from faust.transport.drivers import aiokafka as driver


class PatientConsumer(driver.Consumer):  # type: ignore[misc] # faust's classes have no types that hold
    """Drops nothing that was read. Partitions of streams flow no earlier than `resume_flow`, which faust calls right after it emptied the queues."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 -- handed on
        self._waiting: set[Any] = set()
        super().__init__(*arguments, **named)

    def resume_partitions(self, tps: Iterable[Any]) -> None:
        """Let those of changelogs flow, for recovery reads them; the others wait."""
        tables = {tp for tp in tps if self._is_changelog_tp(tp)}
        self._waiting |= set(tps) - tables
        super().resume_partitions(tables)

    def pause_partitions(self, tps: Iterable[Any]) -> None:
        """Also forget that they wait: a new assignment begins anew."""
        self._waiting -= set(tps)
        super().pause_partitions(tps)

    def resume_flow(self) -> None:
        """The queues are empty and every partition stands at its committed offset."""
        super().resume_flow()
        waiting, self._waiting = self._waiting, set()
        if waiting:
            super().resume_partitions(waiting)

    async def seek_to_committed(self) -> Mapping[Any, int]:
        """Every stream's partition stands at its committed offset, a new one at its beginning."""
        offsets: Mapping[Any, int] = await super().seek_to_committed()
        new = [tp for tp, offset in offsets.items() if not offset and not self._is_changelog_tp(tp)]
        if new:
            await self._thread.seek_to_beginning(*new)
        return offsets

    async def _getmany(self, active_partitions: set[Any] | None, timeout: float) -> Any:  # noqa: ANN401, ASYNC109 -- faust's signature
        return await super()._getmany(None if active_partitions is None else set(active_partitions), timeout)


class PatientTransport(driver.Transport):  # type: ignore[misc] # faust's classes have no types that hold
    """faust's way to Kafka, with the consumer above."""

    Consumer: ClassVar[type[PatientConsumer]] = PatientConsumer
