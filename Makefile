# `make demo` sets up and registers two real brains; `make test` sets up and runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WEIGHTS := models/weights/brain-t1-small.safetensors
BUNDLE := runtime/paramorph_rt/bundles/brain-t1-small

.PHONY: demo test lint golden clean

demo: $(BUNDLE)/manifest.json
	$(BIN)/python examples/demo.py --out-dir demo --force

test: $(VENV)/ready
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BUNDLE)/manifest.json: $(WEIGHTS) $(VENV)/ready
	$(BIN)/python export/to_onnx.py --weights $(WEIGHTS) --out-dir $(BUNDLE) --force

# torch first and by number: a looser request brings gigabytes of CUDA libraries on Linux.
$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[train,export,demo,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo $(BUNDLE)
