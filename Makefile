# upsnet-trt: `make help` lists what can be made.
# Variables: VENV, PYTHON, GPUS, CONFIG, RUN, NAME, BACKEND, MIN_PQ, COCO, COCO_SPLIT, SECONDS, ARGS (handed on to the program).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
GPUS ?= 1
OF_DEMO := training/configs/shapes_best.yaml
NAME ?= runtimes
MIN_PQ ?= 0
COCO ?= ../shared/data/coco_sample
COCO_SPLIT ?= val2017
BACKEND ?= auto
ARGS ?=
OF_RUN := onnx engine serve view load soak eval parity bench
ifdef RUN # a run that is there has its own configuration, and is used as it is
CONFIG ?= $(or $(wildcard $(RUN)/config.yaml),$(OF_DEMO))
ifeq ($(origin CONFIG),file)
ifneq ($(filter $(OF_RUN),$(MAKECMDGOALS)),)
CHECKPOINT := $(or $(wildcard $(RUN)/last.safetensors),\
	$(error error: RUN=$(RUN): no such run: it has no last.safetensors; `make train` with CONFIG and RUN makes one))
endif
endif
endif
CONFIG ?= $(OF_DEMO)
RUN ?= runs/$(if $(filter $(OF_DEMO),$(CONFIG)),demo,$(basename $(notdir $(CONFIG))))

BIN := $(VENV)/bin
UPSNET := $(BIN)/upsnet
READY := $(VENV)/.ready
TRITON_VENV := $(VENV)-triton
TRITON_READY := $(TRITON_VENV)/.ready
ANY_PYTHON = $(or $(PYTHON),$(wildcard $(BIN)/python),python3) # for machines with a GPU, PyTorch and no network
# OpenMP's threads wait for each other spinning. On a busy machine that made a training step 20 times slower; spinning
# this briefly costs nothing on a quiet one.
export GOMP_SPINCOUNT ?= 10000
export UPSNET_TRITON_ENV = $(abspath $(TRITON_VENV))

# A variable that is wrong ends make before anything is made.
ifneq ($(filter train demo $(OF_RUN),$(MAKECMDGOALS)),)
$(foreach name,CONFIG RUN VENV,$(if $(filter-out 1,$(words $($(name)))),\
	$(error error: $(name)=$($(name)): give one path, without spaces)))
$(if $(wildcard $(CONFIG)),,$(error error: CONFIG=$(CONFIG): no such file; some are in training/configs/))
ifneq ($(words $(GPUS)) $(filter-out gpu $(shell seq 1024),$(GPUS)),1 )
$(error error: GPUS=$(GPUS): give the number of processes, from 1 on, or gpu for one on each GPU)
endif
endif
BENCHES := runtimes serving canary ops kernels pq bulk train ablation gpu
ifneq ($(filter bench,$(MAKECMDGOALS)),)
$(if $(filter $(BENCHES),$(NAME)),,$(error error: NAME=$(NAME): no such bench; there are $(BENCHES)))
endif
COCO_JSON := $(COCO)/annotations/panoptic_$(COCO_SPLIT).json
ifneq ($(filter overfit,$(MAKECMDGOALS)),)
$(if $(wildcard $(COCO_JSON)),,$(error error: COCO=$(COCO): it has no $(COCO_JSON:$(COCO)/%=%); name a folder of photos \
	with their panoptic truth, and its split with COCO_SPLIT))
endif

.PHONY: help setup demo train onnx engine serve load soak eval parity bench overfit plugins lint clean test test-large
.PHONY: test-cpus test-install fuzz sanitize gpu-check docs docs-check overview ablation onnxruntime-cpp browser
.PHONY: $(BENCHES:%=bench-%)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 13

setup: $(READY) $(TRITON_READY) ## the environment in .venv, and the server's beside it (VENV=elsewhere, PYTHON=python3.13)

$(READY): pyproject.toml constraints.txt
	@if ! $(BIN)/python --version >/dev/null 2>&1; then \
		python=$$(.ci/find_python.sh); echo "$(VENV): $$($$python --version), $$(command -v $$python)"; \
		$$python -m venv $(if $(wildcard $(VENV)/pyvenv.cfg),--clear) $(VENV); fi
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# Without an interpreter that Triton can use, this says so and the rest goes on; only `make serve` ends.
$(TRITON_READY): serving/requirements-triton.txt | $(READY)
	@$(BIN)/python -m serving.environment $(if $(filter serve,$(MAKECMDGOALS)),,--optional) $(TRITON_VENV)

NAMED = $(foreach name,CONFIG RUN VENV,$(if $(filter command,$(origin $(name))),$(name)))
demo: $(RUN)/report.html ## train, export, build, serve and compare a small network, with a report in pictures
	@echo '1. Open $<: the figures and pictures of every runtime.'
	@echo '2. See your photos in the browser: $(strip make view $(foreach name,$(NAMED),$(name)=$($(name))))'
	@echo '3. Predict your photo: $(UPSNET) predict photo.jpg --run $(RUN) --out predicted'
	@echo '4. Serve: $(strip make serve $(foreach name,$(NAMED),$(name)=$($(name))))'
	@$(if $(DATA),echo 'This network knows synthetic shapes only; for your own: docs/own-data.md')

$(RUN)/report.html: $(RUN)/engine/engine.json $(wildcard $(TRITON_READY)) | $(TRITON_READY)
	$(BIN)/python eval/parity.py --run $(RUN) --min-pq $(MIN_PQ)

# Configurations on the synthetic data set make it first.
SYNTHETIC := $(patsubst shapes_best,shapes,$(filter shapes shapes_best shapes_long shapes_hard,$(basename $(notdir $(CONFIG)))))
DATA := $(SYNTHETIC:%=data/%/train.json)
PHOTOS ?= $(SYNTHETIC:%=data/%/val)
$(foreach name,shapes shapes_long shapes_hard,data/$(name)/train.json): upsnet/datasets/shapes.py upsnet/datasets/scene.py \
		$(wildcard upsnet/datasets/synthetic/*.py) | $(READY)
	$(UPSNET) shapes --out $(@D) $(if $(findstring long,$@),--train 3000) $(if $(findstring hard,$@),--hard)
	touch $@

TRAIN = $(UPSNET) train --processes $(GPUS) --config $(CONFIG) --out $(RUN)
train: $(READY) $(DATA) ## train CONFIG on GPUS processes (a number, or gpu: one on each GPU); resumes RUN if it exists
	$(TRAIN) $(ARGS)

$(RUN)/.trained: $(CONFIG) $(DATA) | $(READY)
	$(TRAIN)
	touch $@

onnx: $(RUN)/model.onnx ## export RUN's checkpoint to one ONNX file

$(RUN)/model.onnx: $(or $(CHECKPOINT),$(RUN)/.trained)
	$(UPSNET) export --checkpoint $(RUN)/last.safetensors --out $@

engine: $(RUN)/engine/engine.json ## build RUN's engine with BACKEND: auto, onnxruntime, tensorrt, tensorrt-rtx, torch-tensorrt

# The plugins that an engine is built with: those that UPSNET_PLUGINS names; or the library that is there, which follows
# its sources; or, where TensorRT is, which needs them, the one that can be made. Without nvcc that is none: the attempt
# stands in its place. Without TensorRT nobody asks for them (TensorRT-RTX takes what `make plugins` left).
LIBRARY := build/plugins/libupsnet_plugins.so
LIBRARY_TRIED := build/plugins/.tried
LIBRARY_SOURCES := $(addprefix plugins_cuda/,CMakeLists.txt schema.py generate.py) \
	$(wildcard plugins_cuda/*/schema.py plugins_cuda/*/*/schema.py \
	$(foreach kind,h cuh cu cpp,plugins_cuda/*/*.$(kind) plugins_cuda/*/*/*.$(kind)))
ifneq ($(filter demo overview engine serve view load soak parity bench bench-% %/engine.json %/report.html,$(MAKECMDGOALS)),)
TENSORRT = $(shell [ ! -x $(BIN)/python ] || \
	$(BIN)/python -c 'from importlib.util import find_spec; print("here" if find_spec("tensorrt") else "")')
PLUGINS := $(if $(UPSNET_PLUGINS),$(wildcard $(UPSNET_PLUGINS)),\
	$(or $(wildcard $(LIBRARY)),$(if $(TENSORRT),$(LIBRARY_TRIED))))
endif
# ONNX Runtime's kernels are compiled as the engine is made, and lie in its folder: it follows their sources, too.
KERNELS := $(filter-out %.cu %/plugin.cpp plugins_cuda/tensorrt/% plugins_cuda/emulator/%,$(LIBRARY_SOURCES))
$(RUN)/engine/engine.json: $(RUN)/model.onnx $(PLUGINS) $(KERNELS)
	$(UPSNET) engine --model $< --out $(RUN)/engine$(if $(ASKED), --backend $(BACKEND) $(ARGS))

# What is asked for by a word is built, whatever is there; the engine that another target needs is the machine's.
ASKED := $(strip $(if $(filter engine,$(MAKECMDGOALS)),$(foreach name,BACKEND ARGS,$(if $(filter file,$(origin $(name))),,$(name)))))
ifneq ($(ASKED),)
.PHONY: asked
asked: ;
$(RUN)/engine/engine.json: asked
endif

$(LIBRARY): $(LIBRARY_TRIED) ;
$(LIBRARY_TRIED): $(LIBRARY_SOURCES)
	$(MAKE) plugins ARGS=
	@touch $@

serve: $(TRITON_READY) $(RUN)/engine/engine.json ## serve RUN's engine with Triton on 127.0.0.1 (gRPC 8001) until Ctrl-C
	$(UPSNET) serve --run $(RUN) $(ARGS)

view: $(RUN)/engine/engine.json | $(TRITON_READY) ## a page in the browser: what RUN says about your photos (http://127.0.0.1:8010)
	$(UPSNET) viewer --run $(RUN) $(if $(wildcard $(PHOTOS)),--photos $(PHOTOS)) $(ARGS)

load: $(TRITON_READY) $(RUN)/engine/engine.json ## real photos against RUN's server: latency, throughput, refusals; a picture
	$(UPSNET) load-test --run $(RUN) $(ARGS)

eval: $(RUN)/model.onnx ## PQ of RUN on its validation set
	$(UPSNET) eval --run $(RUN) --out $(RUN)/eval $(ARGS)

parity: $(RUN)/engine/engine.json $(TRITON_READY) ## PQ and pixels of every runtime that is here, on RUN's validation set
	$(BIN)/python eval/parity.py --run $(RUN) $(ARGS)

overfit: OVERFIT := runs/coco_sample
overfit: $(READY) $(TRITON_READY) ## learn the photos of COCO=folder by heart; PQ there must reach 50 in every runtime
	$(UPSNET) train --config training/configs/coco_sample.yaml --out $(OVERFIT) $(foreach split,train val,\
		--set data.$(split).json_file=$(COCO_JSON) --set data.$(split).segments=$(COCO_JSON:.json=) \
		--set data.$(split).images=$(COCO)/$(COCO_SPLIT))
	$(UPSNET) export --checkpoint $(OVERFIT)/last.safetensors
	$(UPSNET) engine --model $(OVERFIT)/model.onnx
	$(UPSNET) parity --run $(OVERFIT) --min-pq 0.5

bench: bench-$(NAME) ## how fast the runtimes are, as ratios; NAME=serving, canary, ops, kernels, pq, bulk, train, ablation or gpu: these instead
bench-runtimes: $(RUN)/engine/engine.json $(TRITON_READY)
	$(UPSNET) bench --run $(RUN) $(ARGS)
bench-serving: $(RUN)/engine/engine.json $(TRITON_READY)
	$(BIN)/python -m serving.benchmark --run $(RUN) $(ARGS)
bench-canary: $(RUN)/engine/engine.json $(TRITON_READY)
	$(BIN)/python -m serving.benchmark.canary --run $(RUN) $(ARGS)
bench-ops: $(READY)
	$(BIN)/python -m plugins_cuda.benchmark $(ARGS)
bench-kernels: $(RUN)/model.onnx
	$(UPSNET) bench-kernels --models $(RUN) $(ARGS)
bench-pq: $(READY)
	$(UPSNET) bench-pq $(ARGS)
bench-bulk: $(RUN)/engine/engine.json
	$(UPSNET) bench-bulk --run $(RUN) --photos $(or $(PHOTOS),$(error error: PHOTOS=: name a folder of photos)) $(ARGS)
bench-train:
	$(ANY_PYTHON) -m training.benchmark \
		--config $(if $(filter file,$(origin CONFIG)),training/configs/coco_r50.yaml,$(CONFIG)) $(ARGS)
bench-gpu:
	$(ANY_PYTHON) -m eval.gpu_bench --out runs/gpu_bench $(ARGS)
bench-ablation: $(READY) data/shapes_hard/train.json
	$(UPSNET) ablation $(ARGS)
ablation: bench-ablation

overview: $(RUN)/report.html ## docs/overview.jpg, the picture in the README, from RUN (the demo)
	$(UPSNET) overview --run $(RUN) $(ARGS)

# Without nvcc, CMake says what it leaves out and how to get it.
CMAKE := $(if $(wildcard $(BIN)/cmake),$(BIN)/cmake,cmake)
plugins: ## libraries of the operators in build/plugins, ONNX Runtime's among them; TensorRT's plugins need nvcc
	$(CMAKE) -S plugins_cuda -B build/plugins $(ARGS)
	$(CMAKE) --build build/plugins --parallel --target everything

onnxruntime-cpp: $(READY) ## ONNX Runtime's C++ headers and library in build/onnxruntime, for docs/cpp.md and tests
	.ci/onnxruntime_cpp.sh $(BIN)/python build/onnxruntime

gpu-check: ## build, check and measure the operators on an NVIDIA GPU, with the PyTorch of PYTHON, .venv or python3
	@$(ANY_PYTHON) -c 'from importlib.util import find_spec; exit(not (find_spec("torch") and find_spec("torchvision")))' || \
		{ echo "error: $(strip $(ANY_PYTHON)) has no PyTorch with torchvision; make gpu-check PYTHON=one that has" >&2; exit 2; }
	$(ANY_PYTHON) -m plugins_cuda.gpu_check --out runs/gpu_check $(ARGS)

# Python itself is not instrumented: the sanitizer's library has to be there before anything else is. --capture=sys: a report
# goes to the terminal, and not down with the process.
sanitize: export UPSNET_SANITIZE := address,undefined
sanitize: export ASAN_OPTIONS := detect_leaks=0
sanitize: export UBSAN_OPTIONS := print_stacktrace=1
sanitize: $(READY) ## the CPU fronts, emulated CUDA kernels and plugins under the address and undefined-behaviour sanitizers
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		$(BIN)/python -m pytest tests/plugins_cuda --capture=sys -k "cpu or emulated or front or onnxruntime or test_plugins" $(ARGS)

browser: ## Chromium and axe-core in build/browser, for the tests of pages (docs/testing.md)
	.ci/browser.sh build/browser

test: $(READY) $(TRITON_READY) ## the test suite, but for what takes long
	$(BIN)/python -m pytest $(ARGS)

test-large: $(READY) $(TRITON_READY) ## the tests that take long, marked large
	$(BIN)/python -m pytest -m large $(ARGS)

SECONDS ?= 60
fuzz: $(READY) $(TRITON_READY) ## tests/fuzz again and again with other inputs, for SECONDS=600 or until one fails
	end=$$(($$(date +%s) + $(SECONDS))); while [ $$(date +%s) -lt $$end ]; do \
		UPSNET_FUZZ=1 $(BIN)/python -m pytest -q tests/fuzz $(ARGS); done

soak: $(RUN)/engine/engine.json $(TRITON_READY) ## good requests among hostile ones against RUN's server, for SECONDS
	$(BIN)/python -m tests.serving.soak --run $(RUN) --seconds $(SECONDS) $(ARGS)

test-install: $(READY) ## the wheel in fresh environments (base, client), and the workshop from other folders
	$(BIN)/python -m pytest tests/install $(ARGS)

# Emulated kernels have no levels. What the variables bound, and what nothing does: docs/cpus.md.
NUMERIC := $(BIN)/python -m pytest -m "numeric and not gpu and not large" -k "not emulated"
test-cpus: $(READY) ## the numerical tests as a CPU with AVX2 computes, and as one without AVX (docs/cpus.md)
	UPSNET_CPU_LEVEL=v3 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 \
		OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" $(NUMERIC) $(ARGS)
	UPSNET_CPU_LEVEL=v2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE \
		OPENBLAS_CORETYPE=Nehalem NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL AVX512_SPR" $(NUMERIC) $(ARGS)

lint: $(READY) ## format and faults (ruff, clang-format), types (mypy), layers (import-linter)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	git ls-files '*.h' '*.cpp' '*.cuh' '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy
	$(BIN)/lint-imports

docs-check: $(READY) ## every command, option, file and link that README.md and docs/ name exists
	$(BIN)/python -m pytest -q tests/docs $(ARGS)

$(VENV)/.docs-ready: pyproject.toml $(READY)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs-ready ## the site, with API pages from the docstrings, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -f docs/site/mkdocs.yml

clean: ## remove build/, the synthetic data and the demo's run (environments, other runs and other data stay)
	rm -rf build data/shapes data/shapes_long data/shapes_hard runs/demo
