# `make demo` and `make test` need only Python 3.11+, make and a C compiler; both make .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-fast test-oldest test-newest test-wheel dist lint bench browser docs clean

$(BIN)/lrpot: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

# The tests' own tools: pytest, SchNetPack (an oracle for PaiNN), ruff, mypy.
$(VENV)/.dev: $(BIN)/lrpot
	$(PIP) --editable '.[dev]'
	@touch $@

demo: $(BIN)/lrpot
	$(BIN)/python examples/01_nacl_main_job.py --out runs/demo --overwrite

# Two processes of one thread each: small tensors gain nothing from more threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

# For CI: what the browser test of `lrpot report` needs, if it can be installed here. Users' `make test` goes without.
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null && timeout 120 apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install --yes --no-install-recommends -qq chromium chromium-driver; then :; \
	else echo "no chromium here, and it cannot be installed: the browser test is skipped"; fi

test: $(VENV)/.dev lint
	$(PYTEST) --cov

test-fast: $(VENV)/.dev
	$(PYTEST) -m 'not slow' -q

# The fast tests with the lowest releases that pyproject.toml allows, and with the newest; torch is some gigabytes for each.
# What old releases say of newer ones (deprecations) is not lrpot's to mend.
test-oldest: build/oldest/.dev
	OMP_NUM_THREADS=1 build/oldest/bin/python -m pytest --numprocesses 2 -m 'not slow' -q \
		-W ignore::DeprecationWarning -W ignore::FutureWarning

build/oldest/.dev: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv --clear build/oldest
	build/oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[dev]'
	@touch $@

test-newest:
	$(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	OMP_NUM_THREADS=1 build/newest/bin/python -m pytest --numprocesses 2 -m 'not slow' -q

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist

# The wheel in an environment that has nothing else; then the README's commands with it, from an empty directory.
test-wheel: dist
	$(PYTHON) -m venv --clear build/wheel
	build/wheel/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	LRPOT_README_PROGRAMS=$(CURDIR)/build/wheel/bin $(BIN)/python -m pytest tests/unit/test_readme.py -k commands

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/mkdocs build

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) build dist *.egg-info
