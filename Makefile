# Tasks of this repository, for developers and CI. `make` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := bench client dev docs export jobs otel s3 serve tracking train tune
DEMO := demo
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
# folder of data sets outside the repository; without it, tests that need them are skipped
export RECSYS_DATASETS ?= $(abspath $(wildcard ../shared/data))

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-lowest flink spark bench openapi settings serve docs dist clean check locks

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/.installed ## run the pipeline on MovieLens 100k, and show what is like six movies and used together with one
	@$(BIN)/recsys data movielens-100k --output $(DEMO)
	@$(BIN)/recsys nightly --config $(DEMO)/recsys.toml
	@$(BIN)/recsys similar 1 50 71 127 183 222 --k 5 --config $(DEMO)/recsys.toml
	@$(BIN)/recsys together 50 --k 5 --config $(DEMO)/recsys.toml

test: check ## run the checks and the quick tests with branch coverage
	$(PYTEST) -m "not slow and not e2e" --cov

test-all: test ## run all tests: also slow and end-to-end tests, Flink and Spark
	$(PYTEST) -m "slow or e2e"
	@if command -v java >/dev/null && command -v mvn >/dev/null; then $(MAKE) flink spark; \
	  else echo "skipped: make flink, make spark (they need Java 17 and Maven)"; fi

test-lowest: $(VENV)/.installed ## run the unit tests with the lowest versions that pyproject.toml allows
	rm -rf .venv-lowest && mkdir .venv-lowest
	$(BIN)/uv pip compile pyproject.toml --quiet --resolution lowest-direct --python-version 3.11 --no-header --no-annotate \
	  --output-file .venv-lowest/requirements.txt $(foreach extra,$(filter-out bench dev docs,$(EXTRAS)),--extra $(extra))
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --requirement .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install --quiet --editable ".[dev]" --constraint .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pytest -p no:schemathesis --numprocesses 2 --dist worksteal -m "not slow and not e2e" tests/recsys

check: $(VENV)/.installed ## run the linter, the type checker and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

flink: $(VENV)/.installed build/flink/.fetched ## test that the Beam jobs give the same rows on Flink, embedded and on a cluster
	RECSYS_JOB_SERVERS=$(abspath build) $(BIN)/python -m pytest tests/pipelines/beam/test_clusters.py -k flink --log-cli-level INFO

spark: $(VENV)/.installed build/spark/.fetched ## test that the Beam jobs give the same rows on embedded Spark
	RECSYS_JOB_SERVERS=$(abspath build) $(BIN)/python -m pytest tests/pipelines/beam/test_clusters.py -k spark --log-cli-level INFO

build/%/.fetched: runners/%.xml
	@command -v mvn >/dev/null 2>&1 || { echo "error: Maven and Java 17 are required to download the job servers of Beam." >&2; exit 2; }
	mvn --quiet --batch-mode -Dmaven.artifact.threads=16 --file $< -Doutput=$(abspath $(@D)) package
	@touch $@

bench: $(VENV)/.installed ## run all benchmarks on a machine that does nothing else, and compare them with their targets; takes hours
	$(BIN)/python -m benchmarks --folder build/benchmarks $(if $(RECSYS_DATASETS),--datasets $(RECSYS_DATASETS))

settings: $(VENV)/.installed ## generate the example config and the settings page of the documentation
	$(BIN)/python -m recsys.config.reference

openapi: $(VENV)/.installed ## generate the OpenAPI description of the service, docs/openapi.json
	$(BIN)/python -m serving.openapi > docs/openapi.json

serve: $(VENV)/.installed ## serve the champion of the demo over HTTP
	$(BIN)/recsys serve --config $(DEMO)/recsys.toml

docs: $(VENV)/.installed ## build the documentation into build/site, offline; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

dist: $(VENV)/.installed ## build the source distribution and the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist

clean: ## remove the environment, the demo and all caches
	rm -rf $(VENV) $(DEMO) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

locks: $(VENV)/.installed ## update the locked requirements
	$(LOCK) --output-file requirements/server.txt --extra otel --extra s3 --extra serve
	$(LOCK) --output-file requirements/server-mlflow.txt --extra otel --extra s3 --extra serve --extra tracking
	$(LOCK) --output-file requirements/nightly.txt --extra export --extra jobs --extra s3 --extra tracking --extra train --extra tune
	$(LOCK) --output-file requirements/dev.txt $(foreach extra,$(EXTRAS),--extra $(extra))

LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links

$(VENV)/.installed: pyproject.toml requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: Python 3.11 or later is required. Received: $$($(PYTHON) --version 2>&1). Run: make PYTHON=python3.12" >&2; exit 2; }
	@command -v $${CXX:-c++} >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || \
	  { echo "error: a C++ compiler is required to build Annoy. Install g++ or clang." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@
