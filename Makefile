# upsnet-trt: `make help` lists what can be made. Variables: VENV, GPUS, CONFIG, RUN, COCO, COCO_SPLIT, ARGS, PYTHON.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV ?= .venv
TRITON_VENV := $(VENV)-triton
GPUS ?= 1
CONFIG ?= training/configs/demo.yaml
RUN ?= runs/$(basename $(notdir $(CONFIG)))
COCO ?= ../shared/data/coco_sample
COCO_SPLIT ?= val2017
ARGS ?=

BIN := $(VENV)/bin
UPSNET := $(BIN)/upsnet
READY := $(VENV)/.ready
TRITON_READY := $(TRITON_VENV)/.ready
# OpenMP's threads wait for each other spinning. On a busy machine that made a training step 20 times slower; spinning
# this briefly costs nothing on a quiet one.
export GOMP_SPINCOUNT ?= 10000
export UPSNET_TRITON_ENV = $(abspath $(TRITON_VENV))

# Configurations on the synthetic data set make it first.
DATA := $(if $(filter demo,$(basename $(notdir $(CONFIG)))),data/shapes/train.json)
DATA += $(if $(filter shapes_long,$(basename $(notdir $(CONFIG)))),data/shapes_long/train.json)
ifeq ($(GPUS),1)
TRAIN := $(UPSNET) train
else
TRAIN := $(BIN)/torchrun --standalone --nproc_per_node=$(GPUS) -m training.train
endif

.PHONY: help setup demo train onnx engine serve eval parity bench overfit plugins test lint clean
.PHONY: ablation bench-ops bench-pq bench-train gpu-check sanitize test-cpus

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 13

setup: $(READY) $(TRITON_READY) ## the environment in .venv, and the server's beside it (VENV=... for another place)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -c 'import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), .5)'
	touch $@

$(TRITON_READY): serving/requirements-triton.txt
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/pip install --quiet --no-deps -r serving/requirements-triton.txt
	touch $@

demo: $(RUN)/report.html ## train, export, build, serve and compare a small network, with a report in pictures
	@echo "the report: $<"

$(RUN)/report.html: $(RUN)/engine/engine.json $(TRITON_READY)
	$(BIN)/python eval/parity.py --run $(RUN)

data/shapes/train.json: $(READY) upsnet/datasets/shapes.py upsnet/datasets/scene.py
	$(UPSNET) shapes --out data/shapes
	touch $@

data/shapes_long/train.json: $(READY) upsnet/datasets/shapes.py upsnet/datasets/scene.py
	$(UPSNET) shapes --out data/shapes_long --train 3000
	touch $@

train: $(READY) $(DATA) ## train CONFIG on GPUS processes (torchrun when there are several); resumes RUN if it exists
	$(TRAIN) --config $(CONFIG) --out $(RUN) $(ARGS)

$(RUN)/.trained: $(CONFIG) $(DATA) | $(READY)
	$(TRAIN) --config $(CONFIG) --out $(RUN) $(ARGS)
	touch $@

onnx: $(RUN)/model.onnx ## export RUN's checkpoint to one ONNX file

$(RUN)/model.onnx: $(RUN)/.trained
	$(UPSNET) export --checkpoint $(RUN)/last.safetensors --out $@

engine: $(RUN)/engine/engine.json ## build the engine of this machine from RUN's ONNX file

# A TensorRT plan needs the plugins; without TensorRT nobody asks for them.
WANTS_PLUGINS := import sys; from importlib.util import find_spec; \
	sys.exit(not any(map(find_spec, ["tensorrt", "tensorrt_rtx_bindings"])))
$(RUN)/engine/engine.json: $(RUN)/model.onnx
	if [ ! -f build/plugins/libupsnet_plugins.so ] && $(BIN)/python -c '$(WANTS_PLUGINS)'; then $(MAKE) plugins; fi
	$(UPSNET) engine --model $< --out $(RUN)/engine

serve: $(RUN)/engine/engine.json $(TRITON_READY) ## serve RUN's engine with Triton on 127.0.0.1 (gRPC 8001) until Ctrl-C
	$(UPSNET) serve --run $(RUN) $(ARGS)

eval: $(RUN)/model.onnx ## PQ of RUN on its validation set
	$(UPSNET) eval --run $(RUN) --out $(RUN)/eval $(ARGS)

parity: $(RUN)/engine/engine.json $(TRITON_READY) ## PQ and pixels of PyTorch, ONNX Runtime and Triton on RUN's validation set
	$(BIN)/python eval/parity.py --run $(RUN) $(ARGS)

bench: $(RUN)/engine/engine.json $(TRITON_READY) ## ratios: ONNX Runtime to PyTorch eager, Triton over gRPC to ONNX Runtime
	$(BIN)/python eval/bench.py --run $(RUN) $(ARGS)

bench-pq: $(READY) ## PQ of an image against panopticapi's way, from arrays and from files, in 1 and 2 processes
	$(BIN)/python eval/bench_pq.py $(ARGS)

ablation: $(READY) data/shapes/train.json ## the demo without its panoptic loss, deformable convolutions, mask pruning
	$(BIN)/python eval/ablation.py $(ARGS)

bench-ops: $(READY) ## the operators against the machine's limits and torchvision (ARGS="--device cpu --only nms")
	$(BIN)/python -m plugins_cuda.benchmark $(ARGS)

bench-train: BENCH_CONFIG := $(if $(filter file,$(origin CONFIG)),training/configs/coco_r50.yaml,$(CONFIG))
bench-train: ## training steps of CONFIG (or COCO R50) against torchvision's; ARGS=--loader: the loader alone
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m training.benchmark --config $(BENCH_CONFIG) $(ARGS)

# For a machine with a GPU and PyTorch, which may have no network: the environment if it is there, else PYTHON's own.
gpu-check: ## build, check and measure the operators on an NVIDIA GPU; without .venv: make gpu-check PYTHON=python3
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m plugins_cuda.gpu_check --out runs/gpu_check $(ARGS)

# Python itself is not instrumented: the sanitizer's library has to be there before anything else is. --capture=sys: a report
# goes to the terminal, and not down with the process.
sanitize: export UPSNET_SANITIZE := address,undefined
sanitize: export ASAN_OPTIONS := detect_leaks=0
sanitize: export UBSAN_OPTIONS := print_stacktrace=1
sanitize: $(READY) ## the CPU fronts and the emulated CUDA kernels under the address and undefined-behaviour sanitizers
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		$(BIN)/python -m pytest tests/plugins_cuda --capture=sys -k "cpu or emulated or front" $(ARGS)

OVERFIT := runs/coco_sample
COCO_DATA := $(foreach split,train val,\
	--set data.$(split).json_file=$(COCO)/annotations/panoptic_$(COCO_SPLIT).json \
	--set data.$(split).segments=$(COCO)/annotations/panoptic_$(COCO_SPLIT) \
	--set data.$(split).images=$(COCO)/$(COCO_SPLIT))

overfit: $(READY) $(TRITON_READY) ## learn the photos of COCO=folder by heart; PQ there must reach 50 in every runtime
	$(UPSNET) train --config training/configs/coco_sample.yaml --out $(OVERFIT) $(COCO_DATA)
	$(UPSNET) export --checkpoint $(OVERFIT)/last.safetensors
	$(UPSNET) engine --model $(OVERFIT)/model.onnx
	$(BIN)/python eval/parity.py --run $(OVERFIT) --min-pq 0.5

# Without nvcc or TensorRT's headers, CMake says what it leaves out and how to get it.
CMAKE := $(if $(wildcard $(BIN)/cmake),$(BIN)/cmake,cmake)
plugins: ## libraries of the operators in build/plugins; TensorRT's with TENSORRT_INCLUDE_DIR=folder of NvInfer.h
	$(CMAKE) -S plugins_cuda -B build/plugins \
		$(if $(TENSORRT_INCLUDE_DIR),-DTENSORRT_INCLUDE_DIR=$(abspath $(TENSORRT_INCLUDE_DIR))) $(ARGS)
	$(CMAKE) --build build/plugins --parallel --target everything

test: $(READY) $(TRITON_READY) ## the whole test suite
	$(BIN)/python -m pytest $(ARGS)

# Emulated kernels have no levels. What the variables bound, and what nothing does: docs/cpus.md.
NUMERIC := $(BIN)/python -m pytest -m "numeric and not gpu" -k "not emulated"
test-cpus: $(READY) ## the numerical tests as a CPU with AVX2 computes, and as one without AVX (docs/cpus.md)
	UPSNET_CPU_LEVEL=v3 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 \
		OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" $(NUMERIC) $(ARGS)
	UPSNET_CPU_LEVEL=v2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE \
		OPENBLAS_CORETYPE=Nehalem NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL AVX512_SPR" $(NUMERIC) $(ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

clean: ## remove build/, the synthetic data and the demo's run (environments, other runs and other data stay)
	rm -rf build data/shapes data/shapes_long runs/demo
