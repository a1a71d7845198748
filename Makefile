# hyperdial. Needs Python 3.11 or newer and make; everything else is installed into .venv.

VENV := .venv
BIN := $(VENV)/bin

# The first Python that is new enough and can make environments. 3.11 and 3.12 come first: for them there are wheels
# of everything, also of the Redis and PostgreSQL servers that the embedded mode and the tests bring along.
PYTHON ?= $(shell for python in python3.11 python3.12 python3 python3.13 python3.14 python; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$python; break; }; done)

.PHONY: help demo test test-all test-gpu lint bench picture clean

help:
	@echo "make demo      install, run the service, learn penalties of a real data set while you watch"
	@echo "make test      check and test everything that is fast"
	@echo "make test-all  also the long proofs"
	@echo "make test-gpu  what needs a CUDA device"
	@echo "make bench     measure the service"
	@echo "make picture   draw docs/images/trajectory.svg from a real job"
	@echo "make clean     remove what was installed and made"

$(VENV)/.demo: constraints.txt pyproject.toml scripts/bootstrap.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed (on Debian and Ubuntu: apt install python3-venv)"; exit 2; }
	@$(PYTHON) scripts/bootstrap.py $(VENV) worker,embedded
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@$(PYTHON) scripts/bootstrap.py $(VENV) worker,embedded,postgres,dev
	@touch $@

demo: $(VENV)/.demo
	@$(BIN)/python -m demo

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict service workers
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow and not gpu"

test-all: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not gpu"

test-gpu: $(VENV)/.test
	$(BIN)/pytest -m gpu

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.service

picture: $(VENV)/.test
	$(BIN)/python -m demo.picture docs/images/trajectory.svg

clean:
	rm -rf $(VENV) build dist demo-data .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
