# make demo: install, run the quickstart on the embedded text, say where the report is
# make test: install with the development extras, run all tests
# make docs: build the documentation site into site/, strictly
# make check: lint, types and contract checks, without the tests
# make release: the source archive and the wheel in dist/, of a checkout without changes, once they are tested
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test docs check release clean

demo: $(VENV)/installed
	$(BIN)/ablate run experiments/quickstart.yaml

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/ablate check

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

release: check
	@test -z "$$(git status --porcelain)" || { echo "make release: commit or remove what git status shows"; exit 1; }
	$(BIN)/python -m pytest tests/test_release.py tests/test_transcripts.py
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	@echo "not uploaded: $$(ls dist/*)"

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): about two minutes the first time"
	$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[dev,oracle,hub]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) -e '.[docs]'
	@touch $@
