RECIPE ?= vllm-blackwell
VARIANT ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help template test unit lint bench setup clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

template: setup ## build artifacts/*.tar.zst from RECIPE (default vllm-blackwell), VARIANT when given
	@$(BIN)/builder template recipes/$(RECIPE) $(if $(VARIANT),--variant $(VARIANT))

test: setup ## run the tests; those that need root are left out for an ordinary user
	@$(BIN)/pytest -n 2

unit: setup ## run the quick tests only
	@$(BIN)/pytest -n 2 tests/unit

lint: setup ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup ## measure against the by-hand way; needs root and about 5 minutes
	@$(BIN)/python -m tests.bench

setup: $(VENV)/.ready ## install what is missing: Debian packages (asks before sudo) and the virtual environment

$(VENV)/.ready: scripts/setup pyproject.toml locks/builder.txt
	@scripts/setup $(VENV)
	@touch $@

clean: ## remove the virtual environment and the outputs; the store in ~/.cache/builder stays
	rm -rf $(VENV) artifacts/*.tar.zst artifacts/*.json artifacts/SHA256SUMS
