"""Real Kafka, S3 and PostgreSQL on one machine: start, health, stop."""
