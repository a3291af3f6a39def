# make book | test | newest | wheel | rerun | notebooks | lint | lock | clean       (make help says more)
#
# Every target sets up its environment by itself: .venv with the exact lock and this package, editable; `newest` and
# `wheel` one of their own under _build.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The interpreter that makes .venv; the first one found that is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
    && { echo "$$p"; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
# .venv is stale when the lock or the package's own metadata has changed.
KEY := $(shell cat requirements.txt pyproject.toml | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/.installed-$(KEY)

# What `make newest` runs: the tests of the library, and those of the way it is packaged.
LIBRARY_TESTS := tests/manifolds tests/paths tests/models tests/rivals tests/lab tests/test_packaging.py
# Empty: whatever the package index has today.
CONSTRAINTS ?= constraints-newest.txt
# The newest Python that the classifiers name: on the search path, else among pyenv's.
NEWEST ?= $(shell for v in 3.13 3.12; do \
  for p in "python$$v" "$$(pyenv root 2>/dev/null)"/versions/$$v.*/bin/python; do \
    "$$p" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1 \
      && { command -v "$$p"; break 2; }; done; done)
NEWEST_ENV := _build/newest
NEWEST_STAMP := $(NEWEST_ENV)/.installed-$(shell cat $(CONSTRAINTS) pyproject.toml </dev/null | cksum | cut -d ' ' -f 1)
WHEEL := _build/wheel

CHAPTERS := $(patsubst notebooks/%.py,%,$(wildcard notebooks/*/*.py))
PRESET ?= cpu

# XLA gives its large arrays back to Linux after every program, and has to ask for them again: up to two fifths of the time of
# a training step. With these, glibc keeps them; elsewhere they mean nothing.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 100000000000
export MALLOC_ARENA_MAX ?= 1

LINT := $(BIN)/ruff check --quiet . \
  && { $(BIN)/ruff format --check --quiet . || { echo "ruff format would change files; run $(BIN)/ruff format ." >&2; exit 1; }; } \
  && PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --warnings \
  && $(BIN)/lint-imports --no-cache

.PHONY: help book test newest newest-constraints wheel rerun verify notebooks lint lock clean

help:
	@echo 'make book                      build the book into _build/html'
	@echo 'make test                      run every check and test, and every chapter at preset quick'
	@echo 'make newest                    the library tests on the newest Python found, with the packages of'
	@echo '                               $(or $(CONSTRAINTS),today); CONSTRAINTS= takes whatever the index has'
	@echo 'make newest-constraints        write that file anew from the packages of today'
	@echo 'make wheel                     build the wheel and try it in a clean environment, without and with its lab'
	@echo 'make rerun CHAPTER=... [PRESET=cpu]   compute the missing recorded runs of a chapter;'
	@echo '                               with STALE=1 also those whose code has changed; ENGINE=local://2,'
	@echo '                               dask://host:port or "slurm?jobs=8&..." spreads them over machines'
	@echo 'make verify CHAPTER=... [LIMIT=seconds]   carry recorded runs over to code that has changed:'
	@echo '                               compare old code with new, or compute a sample again'
	@echo 'make notebooks                 write every chapter as .ipynb under _build/notebooks'
	@echo 'make lint                      ruff, pyright, import-linter'
	@echo 'make lock                      write requirements.txt from the packages in .venv'
	@echo 'make clean                     remove everything built (.venv stays)'

$(STAMP):
	@if [ -z "$(PYTHON)" ]; then \
	  echo "Python 3.11 or newer is needed and none was found (python3 is" \
	    "$$(python3 --version 2>&1)). Install one, or name it: make PYTHON=/path/to/python3.11 book" >&2; \
	  exit 1; fi
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f"Python 3.11 or newer is needed; $(PYTHON) is {v.major}.{v.minor}. Name another: make PYTHON=python3.11")'
	@[ -x $(BIN)/python ] || { echo "Creating $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "Installing the locked packages into $(VENV) (about 3 GB; once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

# The page and its doctrees are always built afresh, so that every warning is seen.
# Cell outputs are kept in _build/executed-<digest>, where the digest covers the library,
# the lock and the recorded runs: a chapter is executed again whenever any of them changes.
# book/_ext/wmexecute.py executes the chapters on all cores, before Sphinx reads the first page; so each takes one thread.
book: $(STAMP)
	@rm -rf _build/html _build/.doctrees _build/jupyter_execute
	@env -u MPLBACKEND WMLIB_RECORDED_ONLY=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter-book build . --warningiserror --nitpick --keep-going --quiet \
	  2> >(grep --line-buffered -v '^\[IPKernelApp\]' >&2)
	@echo "The book is at file://$(CURDIR)/_build/html/index.html"

# The type checker has one thread, and runs beside the tests; what it found is printed at the end.
test: $(STAMP)
	@mkdir -p _build; set -m; ( $(LINT) ) >_build/lint.log 2>&1 & lint=$$!; set +m; \
	trap 'kill -- -$$lint 2>/dev/null' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; \
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal; tests=$$?; \
	wait $$lint; lint=$$?; trap - EXIT; cat _build/lint.log; \
	[ $$lint = 0 ] || echo "make lint failed" >&2; exit $$(( tests ? tests : lint ))

$(NEWEST_STAMP):
	@if [ -z "$(NEWEST)" ]; then \
	  echo "Python 3.12 or 3.13 is needed and none was found. Install one, or name it: make newest NEWEST=/path/to/python3.13" >&2; \
	  exit 1; fi
	@rm -rf $(NEWEST_ENV)
	@echo "Creating $(NEWEST_ENV) with $$("$(NEWEST)" --version), $(or $(CONSTRAINTS),the packages of today)"
	@"$(NEWEST)" -m venv $(NEWEST_ENV)
	@$(NEWEST_ENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[test]'
	@touch $@

# Without torch: the tests that need it are skipped, and counted in the last lines. Those of sweeps, engines and `make verify` that
# start many processes run in `make test` alone: none hangs on a version of a package.
newest: $(NEWEST_STAMP)
	@$(NEWEST_ENV)/bin/python -c 'import sys, jax; print("Python", sys.version.split()[0], "with jax", jax.__version__)'
	@$(NEWEST_ENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -p no:cacheprovider -m "not processes and not thorough" $(LIBRARY_TESTS)

newest-constraints:
	@rm -rf $(NEWEST_ENV)
	@$(MAKE) --no-print-directory CONSTRAINTS= newest
	@{ sed -n '/^# The newest/,/^# To renew/p' constraints-newest.txt; \
	   echo "# Date: $$(date -u +%F), $$($(NEWEST_ENV)/bin/python --version)"; \
	   $(NEWEST_ENV)/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.tmp
	@mv constraints.tmp constraints-newest.txt

# Built from a copy, so that nothing of an older build is packed and nothing is left in the tree.
wheel:
	@rm -rf $(WHEEL) && mkdir -p $(WHEEL)/source
	@cp -R wmlib pyproject.toml README.md LICENSE $(WHEEL)/source
	@"$(PYTHON)" -m venv $(WHEEL)/env
	@$(WHEEL)/env/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEEL) $(WHEEL)/source
	@$(WHEEL)/env/bin/python -m pip install --quiet --disable-pip-version-check $(WHEEL)/wmlib-*.whl
	@$(WHEEL)/env/bin/python -I .ci/try_wheel.py core
	@$(WHEEL)/env/bin/python -m pip install --quiet --disable-pip-version-check "$$(echo $(WHEEL)/wmlib-*.whl)[lab]"
	@$(WHEEL)/env/bin/python -I .ci/try_wheel.py lab

lint: $(STAMP)
	@$(LINT)

rerun: $(STAMP)
	@[ -f "notebooks/$(CHAPTER).py" ] || { \
	  echo "make rerun CHAPTER=<chapter> [PRESET=quick|cpu|paper] [STALE=1] [ENGINE=<engine>]" >&2; \
	  echo "no chapter '$(CHAPTER)'; the chapters are: $(CHAPTERS)" >&2; exit 1; }
	@WMLIB_PRESET=$(PRESET) $(if $(STALE),WMLIB_RERUN=stale) MPLBACKEND=agg $(BIN)/python \
	  $(if $(ENGINE),-m wmlib.lab.engines) notebooks/$(CHAPTER).py $(if $(ENGINE),--preset $(PRESET) --engine "$(ENGINE)")

verify: $(STAMP)
	@[ -f "notebooks/$(CHAPTER).py" ] || { \
	  echo "make verify CHAPTER=<chapter> [EXPERIMENT=<one of it>] [LIMIT=<seconds>] [FROM=<commit>] [PRESET=cpu]" >&2; \
	  echo "no chapter '$(CHAPTER)'; the chapters are: $(CHAPTERS)" >&2; exit 1; }
	@$(BIN)/python -m wmlib.lab.verify "$(CHAPTER)" --preset "$(PRESET)" $(if $(EXPERIMENT),--experiment "$(EXPERIMENT)") \
	  $(if $(LIMIT),--limit "$(LIMIT)") $(if $(FROM),--since "$(FROM)") $(if $(STARTS),--starts "$(STARTS)")

notebooks: $(STAMP)
	@for chapter in $(CHAPTERS); do \
	  mkdir -p "_build/notebooks/$$(dirname "$$chapter")" && \
	  $(BIN)/jupytext --quiet --from py:percent --to ipynb --set-kernel python3 \
	    --output "_build/notebooks/$$chapter.ipynb" "notebooks/$$chapter.py" || exit 1; \
	  echo "_build/notebooks/$$chapter.ipynb"; done

lock: $(STAMP)
	@{ sed -n '/^#/p' requirements.txt; \
	   $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > requirements.tmp
	@mv requirements.tmp requirements.txt

clean:
	@rm -rf _build .pytest_cache .ruff_cache .hypothesis *.egg-info
	@find wmlib tests notebooks book -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
