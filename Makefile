# Every target sets up all that it needs in .venv and .venv-trainers, from nothing but Python and make.
PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# A second environment for the adapters of trainers, without fastai.
TRAINERS_BIN := .venv-trainers/bin
TRAINERS_STAMP := .venv-trainers/.installed
TRAINERS_PIP := $(TRAINERS_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-trainers.txt
TRAINERS_TESTS := $(TRAINERS_BIN)/python -m pytest tests/integration/trainers

.PHONY: help test trainers demo lint docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' $(MAKEFILE_LIST)

# With ARGS it is the main environment's tests that are chosen from.
ifeq ($(strip $(ARGS)),)
test: $(STAMP) $(TRAINERS_STAMP)  ## run the tests           (make test ARGS="-m 'not slow'")
	@failed=0; \
	$(TRAINERS_TESTS) || failed=1; \
	$(BIN)/python -m pytest || failed=1; \
	exit $$failed
else
test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)
endif

trainers: $(TRAINERS_STAMP)  ## the trainers' tests     (make trainers ARGS="-k lightning")
	$(TRAINERS_TESTS) $(ARGS)

demo: $(STAMP)  ## fixed against adaptive  (make demo ARGS=--quick)
	$(BIN)/python -m adaptbs demo $(ARGS)

lint: $(STAMP)  ## ruff, and mypy on the package
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

docs: $(STAMP)  ## the documentation site, into build/site; a broken link fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

clean:  ## remove .venv, caches and build output
	rm -rf .venv .venv-trainers build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find adaptbs tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# pip comes first: the one a Python brings along may be too old for --group and --build-constraint.
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into .venv (once; a few minutes)"
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) --build-constraint constraints.txt -e '.[all]' --group dev
	@touch $@

$(TRAINERS_STAMP): pyproject.toml constraints.txt constraints-trainers.txt
	@echo "Installing into .venv-trainers (once; a few minutes)"
	$(PYTHON) -m venv .venv-trainers
	$(TRAINERS_PIP) --upgrade pip
	$(TRAINERS_PIP) --build-constraint constraints.txt -e '.[accelerate,lightning,transformers]' --group trainers
	@touch $@
