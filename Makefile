# `make demo` sets up and registers two real brains; `make test` sets up and runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUNDLE := runtime/paramorph_rt/bundles/brain-t1-small
WEIGHTS ?= $(BUNDLE)/weights.safetensors
FEATURES ?= $(BUNDLE)/features.safetensors
ENGINE_BUNDLE := build/bundles/brain-t1-small

.PHONY: demo bundle test hostile installed lint docs engine plugin cpp niivue clean

demo: $(VENV)/demo-ready
	$(BIN)/python examples/demo.py --out-dir demo --force

# As a user installs it, unless the developers' environment is there already.
$(VENV)/demo-ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	[ -e $(VENV)/ready ] || $(BIN)/python -m pip install --quiet '.[openvino,report,demo]'
	touch $@

# A process per core, each with whole files of tests.
test: $(VENV)/ready
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# Malformed inputs, kills, full disks, races: what `make test` runs of it, with ten times as many
# random cases. PARAMORPH_HOSTILE_PYTHON names the Python of an installed wheel to be tried instead.
HOSTILE_SCALE ?= 10
hostile: $(VENV)/ready
	PARAMORPH_HOSTILE_SCALE=$(HOSTILE_SCALE) $(BIN)/python -m pytest tests/hostile

# The wheel and OpenVINO's extra in clean environments; `nox --list` names all the others.
installed: $(VENV)/ready
	$(BIN)/nox --error-on-missing-interpreters --session base_wheel-3.11 "extra(openvino)"

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site of all pages, build/docs/docs/index.html; a dead link fails it.
docs: $(VENV)/docs-ready
	$(BIN)/python docs/module_map.py
	$(BIN)/python docs/cli_reference.py
	$(BIN)/python docs/json_schemas.py
	$(BIN)/python docs/boutiques_descriptors.py
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . build/docs

$(VENV)/docs-ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# The model that comes with the package, which is tracked: its own weights traced again, or others
# (make bundle WEIGHTS=runs/NAME/weights.safetensors FEATURES=runs/OTHER/weights.safetensors).
bundle: $(VENV)/ready
	$(BIN)/python export/to_onnx.py --weights $(WEIGHTS) --features $(FEATURES) \
	    --card models/weights/brain-t1-small.md --domain $(BUNDLE) --out-dir $(BUNDLE) --force

# The FP16 engine for RTX 3080-class cards; no GPU is needed.
engine: $(VENV)/engine-ready $(ENGINE_BUNDLE)/manifest.json
	$(BIN)/python export/build_engine.py --bundle $(ENGINE_BUNDLE) --target rtx3080

$(ENGINE_BUNDLE)/manifest.json: $(WEIGHTS) $(VENV)/ready
	mkdir -p $(dir $(ENGINE_BUNDLE))
	$(BIN)/python export/to_onnx.py --weights $(WEIGHTS) --features $(FEATURES) \
	    --precision fp32 fp16 --out-dir $(ENGINE_BUNDLE) --force

$(VENV)/engine-ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable '.[tensorrt-rtx]'
	touch $@

# Compilers and headers come as wheels; of kernel-lens only its copy of TensorRT's headers is wanted.
plugin: $(VENV)/plugin-ready build/tensorrt/kernel_lens
	$(BIN)/python export/build_plugin.py

$(VENV)/plugin-ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable '.[plugin]'
	touch $@

# The C library and its example; SITE is where the wheels put their headers. For the engine of `make
# engine`: make cpp TENSORRT_INCLUDE_DIR=… of TensorRT for RTX, which no wheel brings.
TENSORRT_INCLUDE_DIR ?= $(CURDIR)/build/tensorrt/kernel_lens/include/tensorrt
CPP_BUILD ?= build/cpp
cpp: SITE = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cpp: $(VENV)/cpp-ready build/tensorrt/kernel_lens
	$(BIN)/cmake -S runtime/cpp -B $(CPP_BUILD) -DCMAKE_COMPILE_WARNING_AS_ERROR=ON \
	    -DTENSORRT_INCLUDE_DIR=$(TENSORRT_INCLUDE_DIR) \
	    -DCUDA_INCLUDE_DIR=$(SITE)/nvidia/cu13/include \
	    -DNLOHMANN_JSON_INCLUDE_DIR=$(SITE)/nlohmann_json/include
	$(BIN)/cmake --build $(CPP_BUILD) --parallel
	$(BIN)/cmake --install $(CPP_BUILD) --prefix $(CPP_BUILD)/prefix
	$(BIN)/cmake -S runtime/cpp/examples -B $(CPP_BUILD)/example \
	    -DCMAKE_PREFIX_PATH=$(CURDIR)/$(CPP_BUILD)/prefix
	$(BIN)/cmake --build $(CPP_BUILD)/example

$(VENV)/cpp-ready: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable '.[cpp]'
	touch $@

build/tensorrt/kernel_lens: | $(VENV)/ready
	$(BIN)/python -m pip install --quiet --no-deps --target build/tensorrt kernel-lens==2.0.1

# torch first and by number: a looser request brings gigabytes of CUDA libraries on Linux.
# digital-diffeomorphism, a truth of the tests, asks for NumPy 1 and runs with 2.
$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[train,export,report,demo,dev]'
	$(BIN)/python -m pip install --quiet --no-deps digital-diffeomorphism==1.1.1
	touch $@

# The 3-D view of reports: the npm package of which a copy lies in runtime/paramorph_rt/report.
niivue: $(VENV)/ready
	$(BIN)/python runtime/vendor_niivue.py

clean:
	rm -rf $(VENV) build demo
