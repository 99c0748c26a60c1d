# make setup | demo | test | test-slow | check | format | bench | wheel
#      sanitize | wheel-check | gpu-check
#
# PYTHON  the interpreter to start from, 3.11 or later.
# VENV    where its virtual environment goes. With VENV= the interpreter is used as it is: what it
#         lacks is installed into it, its torch stays.
# DATA, IMAGES  for `make demo`: your own COCO json and its folder of images.
export OMP_WAIT_POLICY ?= PASSIVE
PYTHON ?= python3
VENV ?= .venv

ifeq ($(strip $(VENV)),)
python := $(PYTHON)
bin :=
stamp := build/setup$(subst /,-,$(PYTHON))
else
python := $(VENV)/bin/python
bin := $(VENV)/bin/
stamp := $(VENV)/setup
endif

benchmarks := ops models $(filter-out __init__,$(basename $(notdir $(wildcard benchmarks/*.py))))
csrc := $(shell find csrc tests/ops -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')
pip := $(python) -m pip install --disable-pip-version-check --quiet
.PHONY: setup demo test test-slow check format bench wheel sanitize wheel-check gpu-check

setup: $(stamp)

ifeq ($(strip $(VENV)),)
$(stamp): pyproject.toml setup.py $(csrc)
	@mkdir -p $(@D)
	$(python) -c "from importlib.metadata import distributions as found; \
	  print(*(f'torch=={one.version}' for one in found(name='torch')))" > build/torch.txt
	$(pip) --constraint build/torch.txt "setuptools>=77"
	$(pip) --constraint build/torch.txt --no-build-isolation --editable ".[test]"
	@touch $@
else
$(stamp): pyproject.toml setup.py constraints.txt $(csrc)
	test -x $(python) || $(PYTHON) -m venv $(VENV)
	$(pip) --constraint constraints.txt setuptools torch
	$(pip) --constraint constraints.txt --no-build-isolation --editable ".[dev]"
	@touch $@
endif

demo: setup
	$(python) tools/demo.py $(if $(DATA),--data "$(DATA)" --images "$(IMAGES)")

test: setup $(if $(strip $(VENV)),check)
	$(python) -m pytest -m "not slow"

test-slow: setup
	$(python) -m pytest -m slow

check: setup
	$(bin)ruff format --check .
	$(bin)ruff check .
	$(bin)basedpyright --pythonpath $(python)
	$(bin)clang-format --dry-run --Werror $(csrc)
	$(python) -m pytest --quiet tests/test_house.py

format: setup
	$(bin)ruff check --fix .
	$(bin)ruff format .
	$(bin)clang-format -i $(csrc)

bench: setup
	$(foreach name,$(benchmarks),$(python) -m benchmarks.$(name) &&) true

wheel: setup
	$(python) -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

sanitize: setup
	$(python) tools/check_kernels.py --sanitize
	$(python) tools/check_kernels.py --cuda --sanitize

wheel-check: setup
	$(python) tools/check_wheel.py

gpu-check:  # with PYTHON as it is
	$(PYTHON) -m benchmarks.gpu_check
