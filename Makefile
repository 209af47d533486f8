# The course in a few words: `make lab` to take it, `make test` to check it, `make run` to see notebook 04 run.
# On Windows, or without make: the README shows the same steps.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
EXTRAS ?= lab,test,docs
# Tests run in as many processes as there are processors, four at most; SIDE_BY_SIDE= runs them one after another.
SIDE_BY_SIDE ?= -n logical --maxprocesses 4 --dist loadgroup

.PHONY: lab run test test-fast lint size docs notebooks assignments grade-demo binder-check golden bench bench-serve clean

# Rebuilt when pyproject.toml changes; the stamp's name records the extras.
$(VENV)/.installed-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "teachllama needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) tools/install.py $(VENV) "$*"
	@touch $@

INSTALLED = $(VENV)/.installed-$(EXTRAS)

# A learner needs the lab alone: 650 MB, and not the 1,180 of every extra.
lab: $(VENV)/.installed-lab
	$(BIN)/teachllama lab course

run: $(INSTALLED)
	$(BIN)/teachllama fetch smollm2-135m
	$(BIN)/teachllama warmup
	$(BIN)/teachllama run 04

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/size.py >/dev/null || { $(BIN)/python tools/size.py; exit 1; }

# Lines of code in each room of the package, beside their budgets.
size: $(INSTALLED)
	$(BIN)/python tools/size.py

# Everything: style, types, unit and property tests, both real models, the notebooks, a real browser if there is one.
# The second model is Gemma 3; its licence is at https://ai.google.dev/gemma/terms, and its tests are skipped without it.
test: lint
	$(BIN)/teachllama fetch smollm2-135m
	$(BIN)/teachllama warmup
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE)

test-fast: lint
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not model and not notebook and not browser and not slow"

# Runs the notebooks in fresh kernels and keeps their outputs; do this before you commit one.
notebooks: $(INSTALLED)
	$(BIN)/python notebooks/execute.py

# The exercises as nbgrader assignments: the students' versions, in exercises/release.
assignments: $(INSTALLED)
	$(BIN)/python -m exercises.make

# Three made-up students, graded from end to end; their grades, and feedback pages in out/grade-demo.
grade-demo: $(INSTALLED)
	$(BIN)/teachllama fetch smollm2-135m
	$(BIN)/teachllama warmup
	$(BIN)/python -m exercises.grade_demo

docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

binder-check:
	sh binder/check.sh

# The peer is llama.cpp, built for this very machine (about four minutes, needs cmake and a C compiler), kept apart.
PEER = .venv-peer/.installed
$(PEER): benchmarks/build_peer.sh
	sh benchmarks/build_peer.sh .venv-peer $(PYTHON)
	@touch $@

# Another, which computes GELU and doesn't look it up: for golden figures of models that use it.
PEER_GELU = .venv-peer-gelu/.installed
$(PEER_GELU): benchmarks/build_peer.sh
	sh benchmarks/build_peer.sh .venv-peer-gelu $(PYTHON) exact-gelu
	@touch $@

# llama.cpp's figures for a tiny random model of every family, and the table that docs/families.md shows.
golden: $(INSTALLED) $(PEER) $(PEER_GELU)
	$(BIN)/python -m tests.families.make_golden --peer .venv-peer/bin/python --exact-gelu .venv-peer-gelu/bin/python
	$(BIN)/python -m tests.families.table

# Ours beside the peer's, in turn; writes docs/measured/ and the plot of docs/speed.md.
bench: $(INSTALLED) $(PEER)
	$(BIN)/teachllama fetch smollm2-135m
	$(BIN)/teachllama warmup
	$(BIN)/python benchmarks/compare.py --peer .venv-peer/bin/python
	$(BIN)/python benchmarks/fidelity.py --peer .venv-peer/bin/python
	$(BIN)/python benchmarks/sampling.py --peer .venv-peer/bin/python
	$(BIN)/python benchmarks/serve.py --peer .venv-peer/bin/python
	$(BIN)/python benchmarks/page.py

# The load test of docs/serving.md alone: about six minutes.
bench-serve: $(INSTALLED) $(PEER)
	$(BIN)/teachllama fetch smollm2-135m
	$(BIN)/teachllama warmup
	$(BIN)/python benchmarks/serve.py --peer .venv-peer/bin/python

clean:
	rm -rf $(VENV) .venv-peer .venv-peer-gelu docs/_build docs/notebooks out exercises/release exercises/gradebook.db .pytest_cache .mypy_cache .ruff_cache .hypothesis
