# Every target sets up all that it needs in .venv, from nothing but Python and make.
PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help test demo lint docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' $(MAKEFILE_LIST)

test: $(STAMP)  ## run the tests           (make test ARGS="-m 'not slow'")
	$(BIN)/python -m pytest $(ARGS)

demo: $(STAMP)  ## fixed against adaptive  (make demo ARGS=--quick)
	$(BIN)/python -m adaptbs demo $(ARGS)

lint: $(STAMP)  ## ruff, and mypy on the package
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

docs: $(STAMP)  ## the documentation site, into build/site; a broken link fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

clean:  ## remove .venv, caches and build output
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find adaptbs tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# pip comes first: the one a Python brings along may be too old for --group and --build-constraint.
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into .venv (once; a few minutes)"
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) --build-constraint constraints.txt -e '.[all]' --group dev
	@touch $@
