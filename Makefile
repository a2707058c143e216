# make demo   the main job on a laptop, to report.html; make demo PRETRAIN=1 begins with pre-training
# make test   every check
# make torture  kills and hostile inputs, more than make test has time for
# make gpu    the tests and benchmarks that need a GPU
# They make .venv on the first run and find it on the second. Where the packages are installed
# already and .venv cannot be made: make gpu BIN=$(dirname $(command -v python3))

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
ARGS   ?=

BIN       := $(VENV)/bin
# What an installation depends on; newer than the stamp means: install again.
MANIFESTS := setup.py pyproject.toml moco_det/__init__.py
lint      := $(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check . && \
             $(BIN)/python -m mypy
# A hung test must not hang the machine: coreutils' timeout where there is one (not on macOS).
LIMIT     := $(shell command -v timeout >/dev/null 2>&1 && echo timeout 1500)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test torture gpu lint coverage install install-dev clean distclean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\): .*## \(.*\)/  make \1\t\2/p;s/^\([a-z-]*\):  ## \(.*\)/  make \1\t\2/p' \
	  Makefile | sort -u | expand -t 20

demo: $(VENV)/.installed  ## convert, fine-tune, score, report; PRETRAIN=1 pre-trains too (ARGS="--help")
	$(BIN)/python tools/quickstart.py $(if $(PRETRAIN),--pretrain) $(ARGS)

test: $(VENV)/.installed-dev  ## ruff, mypy and pytest
	@{ $(lint); } & OMP_NUM_THREADS=1 $(LIMIT) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS); tests=$$?; \
	wait $$! && exit $$tests

torture: $(VENV)/.installed-dev  ## 200 kills and 5,000 hostile inputs; goes on where it was stopped
	mkdir -p runs/torture
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture.kills --seeds 0:84 -o runs/torture/kills.jsonl
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture.hostile --seeds 0:5000 -o runs/torture/hostile.jsonl

gpu: $(if $(filter $(VENV)/bin,$(BIN)),$(VENV)/.installed-dev)  ## tests and benchmarks on a GPU, one table (ARGS="--help")
	$(BIN)/python3 benchmarks/gpu.py $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff and mypy alone
	$(lint)

coverage: $(VENV)/.installed-dev  ## the tests with a table of lines that none of them reached
	OMP_NUM_THREADS=1 $(LIMIT) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --cov --cov-report=term $(ARGS)

install: $(VENV)/.installed  ## .venv with what the commands need
install-dev: $(VENV)/.installed-dev  ## .venv with what the tests need as well

# venv leaves a python without pip behind where the system ships venv apart (Debian, Ubuntu), so
# the stamp, not the folder, says that it is whole.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo \
	  "error: $(PYTHON) is missing or older than Python 3.10; name another: make PYTHON=python3.12" \
	  >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo \
	  "error: $(PYTHON) -m venv failed; on Debian and Ubuntu install python3-venv first" >&2; exit 1; }
	@touch $@

$(VENV)/.installed: $(MANIFESTS) | $(VENV)/.created
	@echo "Installing into $(VENV): several GB on Linux, where torch brings its CUDA libraries."
	$(BIN)/python -m pip install -e .
	@$(check)
	@touch $@

$(VENV)/.installed-dev: $(MANIFESTS) | $(VENV)/.created
	@echo "Installing into $(VENV): several GB on Linux, where torch brings its CUDA libraries."
	$(BIN)/python -m pip install -e '.[dev]'
	@$(check)
	@touch $@ $(VENV)/.installed

# torch and torchvision from different builds (a CPU torch in a local PIP_FIND_LINKS folder beside
# the index's CUDA torchvision) install without complaint and fail at the first NMS.
define check
$(BIN)/python -c 'import cv2, torch, torchvision; \
  torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)' 2> $(VENV)/check.log || { echo \
  "error: torch, torchvision and cv2 in $(VENV) do not work together ($$(tail -n 1 $(VENV)/check.log));" \
  "remove PIP_FIND_LINKS or whatever names another build of torch, then: make distclean" >&2; exit 1; }
endef

clean:  ## remove caches and build products, keep .venv and runs/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find moco_det pretrain tools tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv too
	rm -rf $(VENV)
