# The two commands a newcomer needs: `make demo` and `make test`. Both make the environment if it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types docs faults dist clean

demo: .venv/installed
	$(BIN)/skipway train digits

test: .venv/installed lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal --durations 15  # one process per core

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

# Build the site in site/; a warning is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Count faults: kills, damaged files, failing disks, races, limits; hours (--quick: minutes).
faults: .venv/installed
	$(BIN)/python benchmarks/faults.py

# Build the sdist, build the wheel from it, and check both.
dist: .venv/release
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/release: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[release]'
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info
