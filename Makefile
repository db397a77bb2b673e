# Two commands a newcomer needs: `make voc07` runs the whole pipeline, `make test` runs the suite.
PYTHON ?= python3
BIN := .venv/bin
# Flags for the main job, e.g. make voc07 ARGS="--data /path/to/VOCdevkit --out runs/mine"
ARGS ?=
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)",$$/\1/p' pyproject.toml)

.PHONY: voc07 test test-oldest test-newest lint docs gpu-card tpu-compiler clean

# Temporary arrays of a training step in huge pages (Linux): 5 to 20 % less time of a step on a CPU.
voc07: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
voc07: .venv/installed
	$(BIN)/python -m experiments.voc07 $(ARGS)

test: .venv/installed-test lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# The core of the suite with every lower bound of pyproject.toml (Python 3.11), and the JAX side with
# the newest packages that the bounds allow, e.g. make test-newest PYTHON=python3.12.
test-oldest:
	$(PYTHON) .ci/versions.py oldest

test-newest:
	$(PYTHON) .ci/versions.py newest --without-torch

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/boundaries.py

# The site of docs/ in build/site; a test of `make test` builds it as well.
docs: .venv/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Correctness and speed on a GPU, in at most 8 minutes, with the packages of PYTHON.
gpu-card:
	$(PYTHON) -m experiments.bench gpu $(ARGS)

# The TPU's compiler (213 MB) for the test that compiles a training step with it. It has a folder of its
# own: among the packages it would make JAX look for a TPU, for half a minute, in every process.
tpu-compiler: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/libtpu "$$($(BIN)/python -c \
	  'import importlib.metadata as m; print(next(r.split(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))')"

# torch first and by its exact version (pyproject.toml has it), so that pip cannot choose a newer build with CUDA packages.
.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[light,clip,dev,docs]"
	touch $@

clean:
	rm -rf .venv build *.egg-info
