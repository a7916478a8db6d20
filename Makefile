# `make` lists the targets.  Elsewhere on Linux torch's default wheel brings CUDA; for the small CPU build:
#   make TORCH_INDEX=https://download.pytorch.org/whl/cpu demo

PYTHON ?= python3
TORCH_INDEX ?=
TEST_WORKERS ?= 2
TRITON := 3.7.0
BIN := .venv/bin
STAMP := .venv/.installed
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-triton lint types architecture check claims claims-long bench bench-peers figures docs picture clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-14s%s\n", $$1, $$2}'

setup: $(STAMP) ## create .venv and install the pinned versions
demo: $(STAMP) ## fit the bundled model to 4.3 bits per weight, print what it cost and where its report is
	@$(BIN)/blockwright demo --out build/demo
test: $(STAMP) ## run the tests (slow ones left out)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --ignore tests/architecture -n $(TEST_WORKERS) --dist worksteal
test-triton: $(STAMP) ## the attention kernel in Triton's interpreter; downloads 200 MB to build/triton
	@$(PIP_INSTALL) --quiet --no-deps --upgrade --target build/triton triton==$(TRITON)
	@PYTHONPATH=build/triton TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/attention/test_gpu_engines.py
lint: $(STAMP) ## ruff: rules and formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
types: $(STAMP) ## mypy --strict
	@$(BIN)/mypy
architecture: $(STAMP) ## import edges, sizes and names
	@$(BIN)/python -m pytest tests/architecture
check: lint types architecture ## lint, types and architecture
claims: $(STAMP) ## measure what the papers claim, and write docs/claims.md
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/claims -m claim --durations=5 --claims-record .
claims-long: $(STAMP) ## the same with the statistical claims, dated
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/claims -m claim --durations=5 --soft --claims-record .
bench: $(STAMP) ## measure speed and memory; writes JSON under build/bench
	@$(BIN)/python -m benchmarks --out build/bench
bench-peers: $(STAMP) ## measure other tools beside ours, each in its own environment; writes docs/benchmarks.md
	@$(BIN)/python -m benchmarks.peers --out build/bench-peers
figures: $(STAMP) ## write the README's figures from build/bench
	@$(BIN)/python -m benchmarks.readme build/bench
docs: $(STAMP) ## write docs/cli.md from the commands
	@mkdir -p docs && $(BIN)/python -m typer blockwright.cli.app utils docs --name blockwright --output docs/cli.md
picture: $(STAMP) ## fit the bundled model and take docs/report.png of its report (needs Chromium)
	@$(BIN)/blockwright demo --out build/demo
	@$(BIN)/python scripts/picture_report.py build/demo/blockwright-report.html docs/report.png
clean: ## remove everything that was built, .venv included
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) not found; install Python 3.11 or newer, or name it: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) setuptools
	$(PIP_INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@
