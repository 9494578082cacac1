# Every task of the project. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1
# Where PyTorch comes from. The default is PyTorch's own CPU wheels: no CUDA packages. Empty: the usual index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CHECKPOINT ?= training/checkpoint
ENGINES ?= engines
MODES ?= tiny,small,base,large,gundam
PAGE ?= examples/page.png
MODE ?= tiny
RETENTION ?= dynamic
TRUTH ?= examples/page.txt
# Options of benchmarks.load_test: LOAD="--concurrency 1,8 --window 5"
LOAD ?=
# Test processes, and whether to report what the tests reach (models inside Triton are not seen).
WORKERS ?= auto
COVERAGE ?=
TESTS = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup $(if $(COVERAGE),--cov --cov-report=term)

.PHONY: help
help: ## list the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml client/pyproject.toml constraints.txt
	@echo "Making the virtual environment in $(VENV) (about 1 GB; a few minutes the first time) ..."
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "Python 3.11 or 3.12 is needed, this is %d.%d: name one with PYTHON=" % v)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt pip
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(PIP) -c constraints.txt -e '.[preprocess,vision,decoder]' -e ./client --group server --group export --group dev
	@touch $@

.PHONY: install
install: $(VENV)/installed ## make the virtual environment and install everything

.PHONY: engines
engines: install ## export the checkpoint to CPU engines (skipped when they are up to date)
	$(BIN)/python -m export --checkpoint $(CHECKPOINT) --target cpu --modes $(MODES) --output $(ENGINES) all

.PHONY: demo
demo: engines ## read the example page through a real Triton server
	$(BIN)/python -m server --engines $(ENGINES) --log-file $(ENGINES).log run -- $(BIN)/python -m deepseek_ocr_client ocr $(PAGE) --mode $(MODE) --retention $(RETENTION) --truth $(TRUTH) --facts

.PHONY: serve
serve: engines ## keep the server up: HTTP 8000, gRPC 8001, metrics 8002; Ctrl-C stops it
	RTPRUNE_MODE=$(MODE) $(BIN)/python -m server --engines $(ENGINES) serve

.PHONY: lint
lint: install ## lint, format, layers and types, of tests and benchmarks too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	@# Triton has every model in a file of one name, which mypy takes one of: other names for them, one run.
	@rm -rf build/models && mkdir -p build/models
	@for model in model_repository/*/1/model.py; do \
		ln -s ../../$$model build/models/$$(echo $$model | tr / _); \
	done
	$(BIN)/mypy build/models/*.py

.PHONY: check
check: lint ## the fast loop before each commit: lint, and the quick tests that need no server
	$(TESTS) -m 'not serving and not docker and not slow and not long'

.PHONY: test
test: lint ## the whole proof: lint, and every test of a few minutes
	$(TESTS) -m 'not long'

.PHONY: test-long
test-long: install ## the tests that take more than a few minutes
	$(BIN)/python -m pytest -m long

.PHONY: benchmarks
benchmarks: engines ## measure pruning and decoding on this machine into benchmarks/results/
	$(BIN)/python -m benchmarks.pruning
	$(BIN)/python -m benchmarks.preprocessing
	$(BIN)/python -m benchmarks.decoding

.PHONY: ablation
ablation: engines ## character error rate against retention, every strategy
	$(BIN)/python -m benchmarks.retention

.PHONY: load-test
load-test: engines ## load-test a real server with perf_analyzer, beside transformers; LOAD= takes options
	@mkdir -p build
	$(BIN)/python -m server --engines $(ENGINES) --log-file build/load_test.log run -- $(BIN)/python -m benchmarks.load_test --engines $(ENGINES) $(LOAD)

.PHONY: full-size
full-size: install ## export random weights of DeepSeek-OCR's exact size: 30 GB of disk, some five minutes
	$(BIN)/python -m benchmarks.full_size

.PHONY: figures
figures: engines ## the README's figures
	$(BIN)/python -m benchmarks.figures

.PHONY: clean
clean: ## remove the engines and what the tools left, not the virtual environment
	rm -rf $(ENGINES) $(addprefix $(ENGINES).,previous staging lock plans.cache trtllm.cache trtllm-build.log) build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
