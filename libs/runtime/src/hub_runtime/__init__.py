"""The consumer loop, dead letters, health, metrics, tracing and logging of every service."""
