"""The consumer loop, dead letters, health, metrics, tracing and logging of every service. README.md is the contract for a service author."""

from hub_runtime.deadletters import bury, dead_letter_key, unbury
from hub_runtime.errors import BrokerUnavailable, GiveUp, RetryLater, StopProcess
from hub_runtime.handlers import ChildProcess, Handler
from hub_runtime.health import Health, HealthServer
from hub_runtime.keyring import BadKeyRing, KeyRing
from hub_runtime.logs import LOG_FIELDS, FieldNotAllowed, configure_logging, logger
from hub_runtime.loop import run_consumer
from hub_runtime.metrics import Metric, Metrics, UndeclaredMetric
from hub_runtime.producer import EventProducer
from hub_runtime.records import Record
from hub_runtime.service import Service, run_service
from hub_runtime.settings import ProcessSettings, ServiceSettings, kafka_config, open_store
from hub_runtime.topics import TopicMismatch, create_topics
from hub_runtime.workers import run_workers

__all__ = [
    "LOG_FIELDS",
    "BadKeyRing",
    "BrokerUnavailable",
    "ChildProcess",
    "EventProducer",
    "FieldNotAllowed",
    "GiveUp",
    "Handler",
    "Health",
    "HealthServer",
    "KeyRing",
    "Metric",
    "Metrics",
    "ProcessSettings",
    "Record",
    "RetryLater",
    "Service",
    "ServiceSettings",
    "StopProcess",
    "TopicMismatch",
    "UndeclaredMetric",
    "bury",
    "configure_logging",
    "create_topics",
    "dead_letter_key",
    "kafka_config",
    "logger",
    "open_store",
    "run_consumer",
    "run_service",
    "run_workers",
    "unbury",
]
