# edgefleet's daily commands. Everything runs in .venv; nothing else on the machine is touched,
# but that `make test` installs the real servers it tests against where it may use apt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo test test-arm64 lint format bench models clean help

help:
	@echo "make demo | test | test-arm64 | lint | format | bench IDS=R5 | models NAME=digits | setup | clean"

# One stamp per set of dependencies: installed again only when pyproject.toml changes.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "edgefleet needs Python 3.11 or later; set PYTHON=python3.x" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) >&2 || { echo "cannot make a virtual environment: on Debian and Ubuntu install python3-venv" >&2; exit 2; }

$(VENV)/.server-installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing edgefleet into $(VENV)" >&2
	@$(PIP) --editable '.[server]' >&2
	@touch $@

$(VENV)/.dev-installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing edgefleet and its development tools into $(VENV)" >&2
	@$(PIP) --editable '.[dev]' >&2
	@touch $@ $(VENV)/.server-installed

$(VENV)/.models-installed: $(VENV)/.dev-installed
	@echo "installing what trains the model zoo into $(VENV)" >&2
	@$(PIP) --editable '.[models]' >&2
	@touch $@

setup: $(VENV)/.dev-installed

demo: $(VENV)/.server-installed
	@$(BIN)/python -m fleet_server.cli demo $(DEMO_ARGS)

# What measures, kills and restarts has the machine for itself; the rest runs on two of its cores.
ALONE := tests/agent tests/demo tests/end_to_end tests/models tests/quantize tests/server/simulator

test: $(VENV)/.dev-installed
	@tests/install_real_servers.sh
ifdef TEST_ARGS
	@$(BIN)/python -m pytest $(TEST_ARGS)
else
	@status=0; \
	$(BIN)/python -m pytest -n 2 --dist loadfile $(addprefix --ignore=,$(ALONE)) || status=1; \
	$(BIN)/python -m pytest $(ALONE) || status=1; \
	exit $$status
endif

# On an emulated 64-bit ARM; as root, see docs/arm.md.
test-arm64: $(VENV)/.dev-installed
	@$(BIN)/python -m tests.arm64 $(TEST_ARGS)

lint: $(VENV)/.dev-installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.dev-installed
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

bench: $(VENV)/.dev-installed
	@$(BIN)/python -m benchmarks $(IDS) $(BENCH_ARGS)

# quantizing alone needs nothing that trains
models: $(VENV)/$(if $(findstring --only quantize,$(MODEL_ARGS)),.dev-installed,.models-installed)
	@$(BIN)/python -m models.$(NAME).recipe $(MODEL_ARGS)

clean:
	rm -rf $(VENV) .bench-envs .venv-conformance build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
