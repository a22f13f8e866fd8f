"""Typed events, their envelope and the registry of topics."""

from hub_events.envelope import Event, UnreadableEvent, child_traceparent, decode, encode, new_traceparent
from hub_events.registry import TOPICS
from hub_events.topic import Topic

__all__ = ["TOPICS", "Event", "Topic", "UnreadableEvent", "child_traceparent", "decode", "encode", "new_traceparent"]
