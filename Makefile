# Loradesk. `make run` and `make test` are all one needs to know; both make the environment first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test test-all bench lint package demo-pack clean system

run: $(INSTALLED)
	$(BIN)/loradesk demo

test: $(INSTALLED) lint
	QT_QPA_PLATFORM=offscreen $(BIN)/python -m pytest -m "not slow"

# The last step needs root, debootstrap and Xvfb, and says so where they are missing.
test-all: $(INSTALLED) lint
	QT_QPA_PLATFORM=offscreen $(BIN)/python -m pytest
	$(MAKE) package
	packaging/check_deb.sh

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(INSTALLED)
	$(BIN)/python -m loradesk_app.lag

package: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[packaging]'
	$(BIN)/python packaging/build.py

# Trains the demo pack anew; needs a GPU.
demo-pack: $(INSTALLED)
	$(BIN)/python -m training.demo

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

system:
	@sh packaging/system-packages.sh

$(INSTALLED): pyproject.toml packaging/debian-packages.txt | system
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@
