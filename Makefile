PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup schemas lock format lint types
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
