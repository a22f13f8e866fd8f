"""Makes research studies findable: PostgreSQL index and QIDO-RS."""
