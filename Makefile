# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One process per core, whole files each. Memory is the limit on large machines: a process takes up to 2 GiB.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check lint format network clean

help:
	@echo "make demo     tune a real vision transformer on real images and compare it with its linear probe"
	@echo "make test     run the tests (offline, CPU)"
	@echo "make check    what a change must pass: lint, types, docstrings, tests with coverage"
	@echo "make lint     the first three of these"
	@echo "make format   format the code"
	@echo "make network  also run the tests that fetch real weights"
	@echo "make clean    remove .venv and caches"

demo: $(VENV)/installed-demo
	$(BIN)/coeff-tuning demo

test: $(VENV)/installed-dev
	$(PYTEST)

check: lint
	$(PYTEST) --cov --cov-fail-under=90 --cov-report=term:skip-covered

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet src

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

network: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "not gpu"

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/installed-%: pyproject.toml constraints.txt hatch_build.py $(wildcard src/coeff_tuning/ops/native/csrc/*)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (PyTorch is large; a few minutes the first time)"
	$(PIP) --editable ".[$*]"
	$(if $(filter dev,$*),$(PIP) ftfy && $(PIP) --no-deps timm open_clip_torch)
	@touch $@
