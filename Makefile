# make serve   a classifier on http://127.0.0.1:8000
# make test    the tests
# make bench   the figures of serving: this service, its peers, the machine's limit (half an hour)
# make help    the rest
#
# Each target first sets up what it needs in .venv; when all is there, that takes no time.

PYTHON ?= python3
PORT ?= 8000
ARGS ?=

VENV := .venv
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check
LOWEST := build/lowest
SIDE_BY_SIDE := --numprocesses=auto --dist=loadfile --no-loadscope-reorder

.PHONY: help install serve test test-cluster test-fast test-lowest lint bench bench-training soak

help:
	@echo 'make serve    serve the models in models_store on http://127.0.0.1:$(PORT) (another port: PORT=8080)'
	@echo 'make test     run the tests (some of them: ARGS=tests/app/api)'
	@echo 'make test-fast    only those that take moments (2 minutes)'
	@echo 'make test-cluster those that start a Ray cluster (6 minutes on a slow machine)'
	@echo 'make test-lowest  those of the service, with the lowest versions that pyproject.toml allows'
	@echo 'make lint     check formatting, lint, types, the direction of imports and the workflow'
	@echo 'make bench    measure serving against other servers (a short look: ARGS=--quick); needs wrk and a C compiler'
	@echo 'make bench-training  measure training: speed against the tutorial'"'"'s loop, accuracy (hours; one seed: ARGS="--seeds 0"; goes on when stopped)'
	@echo 'make soak     ten minutes of mixed and hostile requests, every answer checked (a short form: ARGS="--minutes 1")'
	@echo 'make install  only set up what serving needs in $(VENV) (another Python: PYTHON=python3.12)'

install: $(VENV)/.serve

serve: $(VENV)/.serve
	$(VENV)/bin/convscope serve --host 127.0.0.1 --port $(PORT)

test: $(VENV)/.develop
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -m 'not cluster' $(ARGS)

test-cluster: $(VENV)/.develop
	$(VENV)/bin/python -m pytest -m cluster $(ARGS)

test-fast: $(VENV)/.develop
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -m 'not slow and not cluster' $(ARGS)

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest $(SIDE_BY_SIDE) -m 'not slow and not cluster' tests/app $(ARGS)

lint: $(VENV)/.develop
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/zizmor --offline --quiet .github

bench: $(VENV)/.develop
	$(VENV)/bin/python -m bench.serving $(ARGS)

bench-training: $(VENV)/.develop
	$(VENV)/bin/python -m bench.training exercise $(ARGS)
	$(VENV)/bin/python -m bench.training speednet $(ARGS)

soak: $(VENV)/.develop
	$(VENV)/bin/python -m bench.serving.soak $(ARGS)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo 'convscope needs Python 3.11 or newer, and $(PYTHON) is not: name one with PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo '$(PYTHON) cannot make virtual environments: install its venv module (Debian: apt install python3-venv)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# A stamp is newer than pyproject.toml when what that asks for is installed.
$(VENV)/.serve: pyproject.toml | $(VENV)/.created
	$(PIP) --editable '.[segmentation]'
	@touch $@

$(VENV)/.develop: pyproject.toml | $(VENV)/.created
	$(PIP) --editable '.[dev,train]'
	@touch $@ $(VENV)/.serve

# What trains is left out: torch has one version, and takes minutes to install.
$(LOWEST)/.installed: pyproject.toml | $(VENV)/.created
	$(VENV)/bin/python -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[test]'
	@touch $@
