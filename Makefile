# Every target stands alone: it sets up what it needs, and set-up that is already done costs under a second.

# The first Python on the path that the project supports; override with `make setup PYTHON=/path/to/python3.11`.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(if $(shell $(p) -c 'print(1)' 2>/dev/null),$(p))))
BIN := .venv/bin
DEMO := runs/demo

# Idle OpenMP threads must sleep: two PyTorch processes that spin on the same cores run at a tenth of their speed.
export OMP_WAIT_POLICY ?= PASSIVE
export KMP_BLOCKTIME ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo resume test lint format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Create .venv with all that training needs (CPU or GPU, as found)
	@$(PYTHON) tools/setup.py

setup-dev: ## The same, with the tools for tests and linting
	@$(PYTHON) tools/setup.py --dev

demo: begin := --overwrite
demo: setup ## Train a small audio model on synthetic speech, then measure it
resume: begin := --resume
resume: setup ## Go on with the demo from its last checkpoint
demo resume:
	@$(BIN)/speechsum train recipes/demo.toml --run-dir $(DEMO) $(begin)
	@$(BIN)/speechsum bench --run-dir $(DEMO) --only rollout
	@echo "To hear what it makes of a recording: $(BIN)/speechsum summarize AUDIO --checkpoint $(DEMO)/model"

lint: setup-dev ## Style, types and the layer rule
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## Everything the project is checked by
	$(BIN)/pytest -q

format: setup-dev ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
