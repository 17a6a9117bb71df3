# Two commands on a fresh machine: `make demo` and `make test`. Set-up is done once, by whichever comes first.
.DEFAULT_GOAL := help
.PHONY: help setup demo rlvr-demo modality-demo test check lint lock clean
PY := .venv/bin/python
export HF_HUB_OFFLINE ?= 1

help:          ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 18

setup:         ## install everything into .venv (nothing to do the second time)
	@scripts/setup.sh

demo: setup    ## the main job end to end on a plain CPU -> runs/demo/report/index.html
	@$(PY) scripts/demo.py

rlvr-demo: setup  ## reinforcement of a small token world model, three seeds -> runs/rlvr-demo/summary.json
	@$(PY) scripts/rlvr_demo.py

modality-demo: setup  ## do world tokens help a policy? every arm, three seeds -> runs/modality-demo/report/report/index.html
	@$(PY) scripts/modality_demo.py

test: setup    ## the whole test suite, offline
	@$(PY) -m pytest -n 2 --dist worksteal

lint: setup    ## format, lint, types, import floors
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

check: lint test  ## what .ci/run calls

lock: setup    ## pin every dependency again, with hashes and without an index address
	@VIRTUAL_ENV=.venv .venv/bin/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-header \
	  --no-annotate --all-extras --upgrade pyproject.toml -o requirements.lock

clean:         ## remove the environment and caches; data and runs stay
	rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache
