# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := build/installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# What a model scores with, which has fast paths by the processor.
SCORING := tests/engine tests/test_reranker.py

# Another environment, with the oldest versions that the package takes: on Python 3.11 or 3.12.
OLDEST := .venv-oldest

.PHONY: demo test test-slow test-avx2 test-oldest notebooks docs lint types clean

demo: $(VENV)/.demo  ## fine-tune a small model on the sample data and use it
	$(BIN)/rerank-plugin demo

test: $(VENV)/.dev  ## the test suite, without its slow tests
	$(BIN)/python -m pytest -n 2 -m 'not slow' $(PYTEST_ARGS)

test-slow: $(VENV)/.dev  ## the slow tests
	$(BIN)/python -m pytest -n 2 -m slow $(PYTEST_ARGS)

test-avx2: $(VENV)/.dev  ## the scoring tests as a CPU without AVX-512 runs them
	@if grep -Eqs 'avx512f|avx_vnni' /proc/cpuinfo; then \
		ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest -n 2 $(SCORING); \
	else echo 'this CPU has nothing beyond AVX2: make test runs them'; fi

test-oldest: $(OLDEST)/.test  ## the test suite with the oldest versions of what it needs
	$(OLDEST)/bin/python -m pytest -n 2 $(PYTEST_ARGS)

notebooks: $(VENV)/.notebooks  ## execute the notebooks; HTML into build/notebooks
	$(BIN)/python notebooks/run.py $(NOTEBOOK_ARGS)

docs: $(VENV)/.dev $(INSTALLED)  ## the documentation; HTML into build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/.dev $(INSTALLED)  ## style, common mistakes, and which part imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(INSTALLED) && $(CURDIR)/$(BIN)/lint-imports --no-cache $(CURDIR)/pyproject.toml

types: $(VENV)/.dev $(INSTALLED)
	MYPYPATH=$(INSTALLED) $(BIN)/mypy --strict $(INSTALLED)/rerank_plugin tests

# mypy and import-linter cannot follow the folder mapping in place: they check an installed copy.
.PHONY: $(INSTALLED)
$(INSTALLED): $(VENV)/.dev
	rm -rf $@
	$(BIN)/python -m pip install --quiet --no-deps --target $@ .
	test $$(find $@/rerank_plugin -name '*.py' | wc -l) -eq \
		$$(git ls-files 'rerank_plugin/*.py' 'finetune/*.py' 'integrations/*.py' | wc -l)

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info demo_model

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make PYTHON=python3.12 …'; exit 1; }
	$(PYTHON) -m venv $(VENV)

BUILT_FROM := pyproject.toml constraints.txt $(wildcard rerank_plugin/engine/cpu/*.[ch])

$(VENV)/.demo: $(VENV)/bin/python $(BUILT_FROM)
	$(INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.notebooks: $(VENV)/bin/python $(BUILT_FROM)
	$(INSTALL) --editable '.[notebooks]'
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: $(VENV)/bin/python $(BUILT_FROM)
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.notebooks

$(OLDEST)/.test: constraints-oldest.txt $(BUILT_FROM)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints-oldest.txt --editable '.[test]'
	@touch $@
