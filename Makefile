# make help      what there is to make
# Everything lives in .venv, which the first target that needs it builds, and later ones re-use.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
INSTALLED := $(VENV)/.installed
SCRIPTS := .venv/learn2learn-0.2.0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint types doctest docs dist clean

help:
	@echo "make install   build the environment in .venv (PYTHON=python3.12 names another Python than python3)"
	@echo "make demo      train and compare HyperAdapter, MAML and ProtoNet on drawn glyphs, into runs/demo (five minutes)"
	@echo "make test      run the tests"
	@echo "make lint      check style and formatting with ruff"
	@echo "make types     check types with mypy"
	@echo "make doctest   run the examples in the docstrings"
	@echo "make docs      build the documentation into build/site, and run its notebooks"
	@echo "make dist      build wheel and sdist into build/dist, and try the wheel in a fresh environment"
	@echo "make clean     remove .venv and what the tools cached; runs/ stays"

install: $(INSTALLED)
	@echo "installed: $(VENV) is ready ($$($(BIN)/python --version))"

demo: $(INSTALLED)
	$(BIN)/l2l-hyper compare --preset benchmarks/presets/demo.toml --out runs/demo

# Some of the tests start processes of their own, each of which would compile torch where bytecode is not kept.
test: export PYTHONDONTWRITEBYTECODE =
test: $(INSTALLED) $(SCRIPTS)/.fetched
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED)
	$(BIN)/mypy l2l_hyper

# Modules under old names warn when they are imported.
doctest: $(INSTALLED)
	$(BIN)/python -m pytest --doctest-modules l2l_hyper $(addprefix --ignore=l2l_hyper/,lightning.py optim.py tasks.py)

# The networks of the notebooks are too small for a second thread.
docs: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build --quiet --fail-on-warning --jobs 2 docs build/site

# The wheel and what it declares, in an environment of their own: from the cache that `make install` filled, if it can be.
dist: $(INSTALLED)
	rm -rf build/dist build/fresh build/fresh-run
	$(UV) build --quiet --out-dir build/dist
	$(UV) venv --quiet --python $(BIN)/python build/fresh
	$(UV) pip install --quiet --python build/fresh --offline build/dist/*.whl 2>/dev/null || \
	    $(UV) pip install --quiet --python build/fresh build/dist/*.whl
	cd build && fresh/bin/l2l-hyper compare --methods protonet --channels 4 --iterations 1 \
	    --validation-episodes 2 --test-episodes 2 --out fresh-run

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info

# uv reads in pyproject.toml how learn2learn has to be compiled.
$(INSTALLED): setup.cfg pyproject.toml | $(UV)
	@echo "install: l2l_hyper and what it needs, into $(VENV); the first time this downloads about 3 GB"
	@echo "         (PyTorch, mostly) and compiles learn2learn, which takes a few minutes"
	$(UV) pip install --python $(BIN)/python --editable '.[dev]'
	@touch $@

# learn2learn's own scripts, which the tests run, come with its source package and are not installed with it.  Those that
# need cherry-rl need the version of 2021 and the last gym that it works with, which only they are to see.
$(SCRIPTS)/.fetched: | $(INSTALLED)
	@echo "test: learn2learn's scripts, and the cherry-rl and gym of their time, into $(SCRIPTS)"
	@$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --no-binary learn2learn \
	    --dest $(@D) learn2learn==0.2.0 || { \
	    echo "test: learn2learn's source package could not be downloaded; see 'pip config list' for where pip looks" >&2; exit 1; }
	@tar -xzf $(@D)/learn2learn-0.2.0.tar.gz -C .venv learn2learn-0.2.0/examples
	$(UV) pip install --quiet --python $(BIN)/python --target $(@D)/cherry --no-deps \
	    cherry-rl==0.1.4 dotmap==1.3.30 gym==0.22.0 gym-notices==0.1.0
	@touch $@

# What is missing is said before anything is downloaded.  The environment is made without pip, because some
# Linux distributions ship venv without the part that would install it; uv does the installing.
$(UV):
	@command -v $(firstword $(PYTHON)) >/dev/null || { \
	    echo "install: no $(PYTHON) found; name a Python 3.10 to 3.13: make install PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 13) else "install: l2l_hyper needs \
	Python 3.10 to 3.13, $(PYTHON) is %d.%d; name another: make install PYTHON=/path/to/python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import pip, venv' 2>/dev/null || { \
	    echo "install: $(PYTHON) lacks pip or venv; install them (Debian and Ubuntu: apt install python3-pip python3-venv)" >&2; \
	    exit 1; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || { \
	    echo "install: no C compiler found, and learn2learn is compiled here; install one (apt install gcc)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; header = os.path.join(sysconfig.get_paths()["include"], "Python.h"); \
	sys.exit(0 if os.path.exists(header) else "install: no " + header + ", and learn2learn is compiled here; \
	install the headers of your Python (apt install python3-dev)")'
	@echo "install: a virtual environment in $(VENV) with $$($(PYTHON) --version), and uv to fill it"
	@$(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --target $(VENV)/uv uv
	@ln -sf ../uv/bin/uv $@
