# make demo: train on the built-in faces and sample from the result. make test: lint and the test suite.
# make bench: measure the kernels beside what else computes nearest neighbours; results in benchmarks/results/.
# All set up .venv from uv.lock first; where uv is missing, it goes into .uv, never into the system.
SHELL := /bin/bash
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)

.PHONY: demo test lint bench setup

demo: setup
	.venv/bin/imletriton fit recipes/faces.toml
	.venv/bin/imletriton gen --n 100

test: lint
	.venv/bin/pytest

bench: $(UV)
	@$(UV) sync --locked --quiet --extra bench
	.venv/bin/python -m benchmarks

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
