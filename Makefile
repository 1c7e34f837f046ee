# make run    environment and dashboard      make test   environment and tests
# make check  ruff, mypy, import directions  make clean  removes the environment
# make gpu    what only a GPU can show: its tests, then its benchmark

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PORT   ?= 8501
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run test gpu check format screenshots clean

run: $(VENV)/.run
	$(BIN)/dgsgpt dashboard --demo --port $(PORT)

test: $(VENV)/.test
	scripts/install-browser
	$(BIN)/python -m pytest -m "not gpu" --numprocesses logical --maxprocesses 4 --dist loadfile

gpu: $(VENV)/.test
	$(BIN)/python -m pytest -m gpu
	$(BIN)/dgsgpt bench gpu

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pictures in the README: four short runs, then every page in a real browser; some minutes.
screenshots: $(VENV)/.test
	scripts/install-browser
	DGSGPT_SCREENSHOTS=docs DGSGPT_REQUIRE_BROWSER=1 $(BIN)/python -m pytest -q tests/e2e/test_pictures.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"dgsgpt needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}: try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing dgsgpt into $(VENV) (once, a few minutes)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing dgsgpt and its test tools into $(VENV) (once, a few minutes)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
