# `make demo` sets up and registers two real brains; `make test` sets up and runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WEIGHTS := models/weights/brain-t1-small.safetensors
BUNDLE := runtime/paramorph_rt/bundles/brain-t1-small

.PHONY: demo test lint plugin golden clean

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

# Compilers and headers come as wheels; of kernel-lens only its copy of TensorRT's headers is wanted.
plugin: $(VENV)/plugin-ready build/tensorrt/kernel_lens
	$(BIN)/python export/build_plugin.py

$(VENV)/plugin-ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable '.[plugin]'
	touch $@

build/tensorrt/kernel_lens: | $(VENV)/ready
	$(BIN)/python -m pip install --quiet --no-deps --target build/tensorrt kernel-lens==2.0.1

# torch first and by number: a looser request brings gigabytes of CUDA libraries on Linux.
$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[train,export,demo,dev]'
	touch $@

clean:
	rm -rf $(VENV) build demo $(BUNDLE)
