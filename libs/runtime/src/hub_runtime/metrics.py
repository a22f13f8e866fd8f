"""Every metric of the runtime, declared once, with its meaning; an undeclared one is an error."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_T = TypeVar("_T")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric before it is used: its name, kind and meaning. No label may hold what names a person or a study."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = SECONDS


RUNTIME_METRICS = (
    Metric("hub_records_handled_total", "counter", "Records whose handling is committed, dead letters not counted.", ("topic",)),
    Metric(
        "hub_records_dead_lettered_total", "counter", "Records that were given up and whose dead letter is committed.", ("topic", "reason")
    ),
    Metric("hub_records_retried_total", "counter", "Times a record met a passing fault and was put back.", ("topic", "reason")),
    Metric(
        "hub_records_discarded_total",
        "counter",
        "Records dropped without a commit because their partition went to another member.",
        ("topic",),
    ),
    Metric("hub_events_produced_total", "counter", "Events whose transaction or acknowledgement is in, dead letters included.", ("topic",)),
    Metric("hub_handler_deaths_total", "counter", "Handler processes that died while they had a record.", ("topic",)),
    Metric("hub_handler_seconds", "histogram", "Time of one call of the handler, successful or not.", ("topic",)),
    Metric("hub_transaction_seconds", "histogram", "Time of one Kafka transaction, begin to commit."),
    Metric("hub_transactions_aborted_total", "counter", "Transactions that were aborted and done again."),
    Metric("hub_records_waiting", "gauge", "Records read and neither running nor committed."),
    Metric("hub_records_in_flight", "gauge", "Records that a handler has now."),
    Metric("hub_partitions_assigned", "gauge", "Partitions that this member owns."),
    Metric("hub_consumer_lag", "gauge", "Records between the committed position and the end of the partition.", ("topic", "partition")),
    Metric("hub_paused_by_fault", "gauge", "1 while a passing fault stops the consumer, else 0."),
    Metric("hub_log_fields_dropped_total", "gauge", "Log fields kept out of the log because the allow-list does not name them."),
)


class UndeclaredMetric(LookupError):
    """A metric was used that no table declares: add it to the table with its meaning."""


class Metrics:
    """The metrics of one process."""

    def __init__(self, declared: Iterable[Metric] = ()) -> None:
        """`declared`: what the service adds to the runtime's table.

        Raises:
            ValueError: a name is declared twice.
        """
        self.registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        ProcessCollector(registry=self.registry)
        for metric in (*RUNTIME_METRICS, *declared):
            match metric.kind:
                case "counter":
                    self._counters[metric.name] = Counter(metric.name, metric.meaning, metric.labels, registry=self.registry)
                case "gauge":
                    self._gauges[metric.name] = Gauge(metric.name, metric.meaning, metric.labels, registry=self.registry)
                case "histogram":
                    self._histograms[metric.name] = Histogram(
                        metric.name, metric.meaning, metric.labels, registry=self.registry, buckets=metric.buckets
                    )

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        counter = _declared(self._counters, name)
        (counter.labels(**labels) if labels else counter).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        gauge = _declared(self._gauges, name)
        (gauge.labels(**labels) if labels else gauge).set(value)

    def forget(self, name: str, **labels: str) -> None:
        """Stop reporting a gauge for these labels."""
        _declared(self._gauges, name).remove_by_labels(labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put a value into a histogram."""
        histogram = _declared(self._histograms, name)
        (histogram.labels(**labels) if labels else histogram).observe(value)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


def _declared(table: dict[str, _T], name: str) -> _T:
    try:
        return table[name]
    except KeyError:
        raise UndeclaredMetric(
            f"{name} is not declared as such a metric: add it to the service's table of metrics, with its meaning"
        ) from None
