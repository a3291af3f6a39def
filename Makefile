# make book | test | rerun | notebooks | lint | lock | clean       (make help says more)
#
# Every target sets up .venv by itself: the exact lock, then this package, editable.

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

CHAPTERS := $(patsubst notebooks/%.py,%,$(wildcard notebooks/*/*.py))
PRESET ?= cpu

.PHONY: help book test rerun notebooks lint lock clean

help:
	@echo 'make book                      build the book into _build/html'
	@echo 'make test                      run every check and test, and every chapter at preset quick'
	@echo 'make rerun CHAPTER=... [PRESET=cpu]   compute the missing recorded runs of a chapter;'
	@echo '                               with STALE=1 also those whose code has changed'
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
# book/_ext/wmexecute.py executes the chapters on all cores, before Sphinx reads the first page.
book: $(STAMP)
	@rm -rf _build/html _build/.doctrees _build/jupyter_execute
	@env -u MPLBACKEND WMLIB_RECORDED_ONLY=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter-book build . --warningiserror --nitpick --keep-going --quiet \
	  2> >(grep --line-buffered -v '^\[IPKernelApp\]' >&2)
	@echo "The book is at file://$(CURDIR)/_build/html/index.html"

test: $(STAMP) lint
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: $(STAMP)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "ruff format would change files; run $(BIN)/ruff format ." >&2; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --warnings
	@$(BIN)/lint-imports --no-cache

rerun: $(STAMP)
	@[ -f "notebooks/$(CHAPTER).py" ] || { \
	  echo "make rerun CHAPTER=<chapter> [PRESET=quick|cpu|paper]" >&2; \
	  echo "no chapter '$(CHAPTER)'; the chapters are: $(CHAPTERS)" >&2; exit 1; }
	@WMLIB_PRESET=$(PRESET) $(if $(STALE),WMLIB_RERUN=stale) MPLBACKEND=agg $(BIN)/python notebooks/$(CHAPTER).py

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
