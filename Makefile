# `make` lists the targets. Needed: make and Python 3.11 or newer; everything else is installed into .venv.
PYTHON ?= python3
WORKERS ?= 2
HASHES ?= yes
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := $(VENV)/.demo
NOTEBOOKS := $(VENV)/.notebooks
DOCS := $(VENV)/.docs
MODEL ?= runs/nano/model
ABLATION ?= experiments/ablations/alignment.yaml
RUNS ?= runs/nano

# Threads that wait must not spin: where cores are shared that costs up to ten times the work.
export OMP_WAIT_POLICY := PASSIVE
# Two test processes, one thread each: the models of the tests are too small for more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup nano sweep compare demo notebooks site test test-slow test-all lint format hashes clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## create .venv and install everything into it: versions of constraints.txt, files checked against their hashes

nano: $(INSTALLED) ## train the miniature EVE, all three stages, into runs/nano; run it again to resume
	$(BIN)/lit-eve nano --output runs/nano

sweep: $(INSTALLED) ## run an ablation, arms x seeds, and report: ABLATION=experiments/ablations/a_a.yaml; call it again to go on
	$(BIN)/lit-eve sweep $(ABLATION)

compare: $(INSTALLED) ## run folders side by side: RUNS="runs/nano/2_pretrain runs/other/2_pretrain"
	$(BIN)/lit-eve compare $(RUNS)

demo: $(DEMO) ## open the web demo of runs/nano/model, or of MODEL=...
	$(BIN)/lit-eve demo --model $(MODEL)

notebooks: $(NOTEBOOKS) ## open the notebooks in Jupyter
	$(BIN)/jupyter lab notebooks

site: $(DOCS) ## build the documentation as a website: docs/_build/html/index.html
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --builder html docs docs/_build/html

test: $(INSTALLED) ## run the tests; WORKERS=4 uses four processes
	$(PYTEST)

test-slow: $(INSTALLED) ## run only what `make test` leaves out: whole training runs, and GPU tests if there is a GPU
	$(PYTEST) -m "slow or gpu"

test-all: test test-slow ## run all tests

lint: $(INSTALLED) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hashes: ## regenerate constraints.hashes.txt, requirements-demo.txt, -notebooks.txt and -docs.txt after a change of constraints.txt; needs uv
	grep -v '^torch==' constraints.txt | uv pip compile $(COMPILE) --no-deps - | \
	  { sed '/^[^#]/,$$d' constraints.hashes.txt; cat; } > constraints.hashes.part
	mv constraints.hashes.part constraints.hashes.txt
	$(call compile_extra,demo,gradio,constraints.txt)
	$(call compile_extra,notebooks,jupyterlab nbclient ipykernel ipywidgets pandas,constraints.txt requirements-demo.txt)
	$(call compile_extra,docs,sphinx furo myst-nb sphinx-copybutton,constraints.txt requirements-demo.txt requirements-notebooks.txt)

# requirements-NAME.txt: what packages need beside constraints.txt, in versions that fit these files.
COMPILE := --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url
define compile_extra
printf '%s\n' $(2) | uv pip compile $(COMPILE) $(addprefix --constraint ,$(3)) \
	  $$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' constraints.txt) - | \
	  { sed '/^[^#]/,$$d' requirements-$(1).txt; cat; } > requirements-$(1).part
	mv requirements-$(1).part requirements-$(1).txt
endef

clean: ## remove .venv, caches and build leftovers; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info docs/_build docs/notebooks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt constraints.hashes.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo 'lit_eve needs Python 3.11 or newer. Name one: make test PYTHON=python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifeq ($(HASHES),no)
	$(BIN)/python -m pip install --constraint constraints.txt setuptools
else
	@$(BIN)/python -m pip install --no-deps --require-hashes --requirement constraints.hashes.txt || \
	  { echo 'The packages could not be installed from the files that constraints.hashes.txt names.' >&2; \
	    echo 'If hashes differ, the index serves other files than the authors published: find out why.' >&2; \
	    echo '`make setup HASHES=no` installs the same versions without this check.' >&2; exit 1; }
endif
	$(BIN)/python -m pip install --no-build-isolation --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(DEMO): $(INSTALLED) requirements-demo.txt
	$(BIN)/python -m pip install --no-deps --require-hashes --requirement requirements-demo.txt
	@touch $@

$(NOTEBOOKS): $(INSTALLED) requirements-notebooks.txt
	$(BIN)/python -m pip install --no-deps --require-hashes --requirement requirements-notebooks.txt
	@touch $@

$(DOCS): $(INSTALLED) requirements-docs.txt
	$(BIN)/python -m pip install --no-deps --require-hashes --requirement requirements-docs.txt
	@touch $@
