PYTHON ?= python3
BIN := .venv/bin
# The tests wait more than they compute: two folders of them at a time, the longest first.
PARALLEL := --numprocesses 2 --dist loadscope --no-loadscope-reorder

.PHONY: help setup schemas lock format lint test test-unit test-integration test-e2e test-peers test-minio test-chaos bench-ingest fuzz
FUZZ_SECONDS ?= 60
help: ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

setup: ## Install what the project needs into .venv
	@$(PYTHON) tools/setup.py

schemas: setup ## Make the event types and the registry of topics from schemas/
	$(BIN)/python tools/generate_events.py

lock: setup ## Lock the dependencies anew
	$(BIN)/python tools/lock.py

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup ## Lint, formatting, types, lock and generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tools/generate_events.py --check
	$(BIN)/python tools/lock.py --check
	$(BIN)/mypy libs services tests tools
	$(BIN)/python tools/check_schemas.py

test: lint ## Everything: lint, types, unit, contract, integration, e2e, on the real parts
	$(BIN)/pytest $(PARALLEL) -m "not peers" tests/e2e tests/integration tests/unit tests/contract

test-peers: setup ## Tests with programs of others: apt-get install dcmtk orthanc orthanc-dicomweb
	$(BIN)/pytest -m peers tests

test-unit: setup ## Tests without I/O, and the contracts
	$(BIN)/pytest tests/unit tests/contract

test-integration: setup ## Tests on real Kafka, S3 and PostgreSQL
	$(BIN)/pytest $(PARALLEL) -m "not peers" tests/integration

test-e2e: setup ## The whole hub as a user has it
	$(BIN)/pytest tests/e2e

test-minio: minio ## The storage suite and the main path on MinIO's server
	HUB_PARTS_S3=minio $(BIN)/pytest $(PARALLEL) tests/integration/objectstore tests/e2e

test-chaos: setup ## Slow suites: power cuts, very large studies
	$(BIN)/pytest tests/chaos

fuzz: ## Fuzz the receiver's fast path with atheris for FUZZ_SECONDS (60); what it learns stays in .hub/fuzz
	@$(PYTHON) tools/setup.py --group fuzz
	@mkdir -p .hub/fuzz/conversation
	$(BIN)/python tests/fuzz/fuzz_conversation.py -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -len_control=0 -timeout=10 -artifact_prefix=.hub/fuzz/ .hub/fuzz/conversation

bench-ingest: setup ## The way in against storescp, Orthanc and pynetdicom: apt-get install dcmtk orthanc (about 10 minutes; BENCH=--quick: does it run?)
	PYTHONPATH=tests $(BIN)/python -m benchmarks.ingest $(BENCH)

-include libs/parts/parts.mk services/console/console.mk
