PYTHON ?= python3
VENV := .venv

.PHONY: demo demo-clean memory test test-long lint setup

# the environment, made again when a list of requirements changes
$(VENV)/.ready: requirements.txt requirements-dev.txt
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

setup: $(VENV)/.ready

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# in up to four processes, one per core
test: lint
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# what takes minutes: runs killed and continued anywhere, many random inputs
test-long: setup
	$(VENV)/bin/python -m pytest -m long
	$(VENV)/bin/python -m pytest --hypothesis-profile many tests/hostile

# toy domains drawn, a source model trained and adapted in three ways, compared: eleven to fifteen minutes on two cores
demo: setup
	$(VENV)/bin/python -m tools.demo

demo-clean:
	rm -rf demo

# whether the memory of a run stays flat
memory: setup
	$(VENV)/bin/python -m tools.memory
