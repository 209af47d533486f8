# The course in a few words: `make lab` to take it, `make test` to check it, `make run` to see notebook 04 run.
# On Windows, or without make: the README shows the same steps.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
EXTRAS ?= lab,test,docs
# Jupyter refuses to run as root unless told, which containers need.
ROOT    = $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)
# Without a display there is no browser to open: print the address.
BROWSER = $(shell [ "$$(uname)" = Darwin ] || [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || echo --no-browser)

.PHONY: lab run test test-fast lint docs notebooks binder-check bench clean

# Made anew when pyproject.toml changes; the extras that are there are remembered in the stamp's name.
$(VENV)/.installed-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "teachllama needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	@touch $@

INSTALLED = $(VENV)/.installed-$(EXTRAS)

lab: $(INSTALLED)
	$(BIN)/teachllama fetch smollm2-135m
	$(BIN)/jupyter lab $(ROOT) $(BROWSER) notebooks/04_sessions_and_memory.ipynb

run: $(INSTALLED)
	$(BIN)/teachllama fetch smollm2-135m
	$(BIN)/teachllama run 04

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Everything: style, types, unit and property tests, both real models, the notebooks, a real browser if there is one.
# The second model is Gemma 3; its licence is at https://ai.google.dev/gemma/terms, and its tests are skipped without it.
test: lint
	$(BIN)/teachllama fetch smollm2-135m
	$(BIN)/python -m pytest -q

test-fast: lint
	$(BIN)/python -m pytest -q -m "not model and not notebook and not browser and not slow"

# Runs the notebooks in fresh kernels and keeps their outputs; do this before you commit one.
notebooks: $(INSTALLED)
	$(BIN)/python notebooks/execute.py

docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

binder-check:
	sh binder/check.sh

# The peer is llama.cpp, built for this very machine (about four minutes, needs cmake and a C compiler), kept apart.
PEER = .venv-peer/.installed
$(PEER):
	$(PYTHON) -m venv .venv-peer
	CMAKE_ARGS=-DGGML_NATIVE=ON .venv-peer/bin/python -m pip install --quiet --no-binary llama-cpp-python llama-cpp-python==0.3.36
	@touch $@

bench: $(INSTALLED) $(PEER)
	$(BIN)/teachllama fetch smollm2-135m
	$(BIN)/python benchmarks/compare.py --peer .venv-peer/bin/python

clean:
	rm -rf $(VENV) .venv-peer docs/_build out .pytest_cache .mypy_cache .ruff_cache .hypothesis
