# `make demo` and `make test` need Python 3.10 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-slow test-faults test-versions lint docs wheel-test clean
.DELETE_ON_ERROR:

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "freia_kd needs Python 3.10 or newer; this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

lenet5.pt: | $(VENV)/installed
	$(BIN)/freiakd train-teacher digits --epochs 30 --out $@

# Distils a teacher of scikit-learn's digits; the second time it only shows what there is.
demo: $(VENV)/installed lenet5.pt
	$(BIN)/freiakd distill --teacher lenet5.pt --preset quick --student 1 --student 3 \
		--eval-data digits --out demo $$(test -f demo/run.json && echo --resume)

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow and not faults" --durations=5

test-slow: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "slow and not faults"

# Bad files and options, full disks and kills by the thousand; it says how many fell short.
# FREIAKD_FAULTS=10 takes ten times as many.
test-faults: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m faults tests/faults

# Another Python, and the oldest or newest libraries: make test-versions PYTHON=python3.10 VERSIONS=oldest
VERSIONS ?= newest
test-versions:
	PYTHON=$(PYTHON) VERSIONS=$(VERSIONS) tools/test_versions.sh

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy freia_kd cli
	PYTHONPATH=. $(BIN)/lint-imports

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

# The site, into site/; it needs no network, to be built or to be read. Warnings are errors.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python tools/check_site.py site

# The built wheel, in an empty environment and outside of the repository, runs the demo in small.
wheel-test: $(VENV)/installed
	PYTHON=$(PYTHON) tools/wheel_test.sh

clean:
	rm -rf $(VENV) demo lenet5.pt build dist site *.egg-info
