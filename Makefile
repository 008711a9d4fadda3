# Everything from nothing but Python 3.11+: the first target that needs it creates .venv and installs the project into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TRITON_ENV ?= build/triton-env
# The folders as they are imported once installed: nemodiff_trt and its four subpackages.
TYPED := build/typing/nemodiff_trt

.PHONY: demo test lint format typecheck bench triton-env triton-test ray-test clean

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED) typecheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy follows neither the package-dir mapping nor an editable install, so it gets a tree of links with the installed layout.
typecheck: $(INSTALLED)
	rm -rf build/typing
	mkdir -p $(TYPED)
	ln -s $(addprefix $(CURDIR)/,$(filter-out %/__pycache__,$(wildcard nemodiff_trt/*)) plugins passes build_engines runtime) $(TYPED)/
	cd build/typing && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p nemodiff_trt

bench: $(INSTALLED)
	mkdir -p build
	$(BIN)/python benchmarks/run.py --page docs/benchmarks.md --json build/benchmarks.json --report build/benchmarks.html

# The Triton server of this wheel cannot use NumPy 2, which is why it has an environment of its own. The package goes in without
# its dependencies: a server that runs ONNX Runtime engines needs no compiler.
triton-env: $(TRITON_ENV)/.installed

$(TRITON_ENV)/.installed: Makefile
	test -x $(TRITON_ENV)/bin/python || $(PYTHON) -m venv $(TRITON_ENV)
	$(TRITON_ENV)/bin/python -m pip install --quiet 'nvidia-pytriton==0.7.0' 'numpy<2' 'onnxruntime>=1.24' 'tokenizers>=0.21' 'jinja2>=3.1'
	$(TRITON_ENV)/bin/python -m pip install --quiet --no-deps -e .
	touch $@

triton-test: $(INSTALLED) triton-env
	$(BIN)/python -m pip install --quiet -e ".[dev,triton]"
	TRITON_ENV=$(TRITON_ENV) $(BIN)/python -m pytest -m "triton and not slow"

ray-test: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e ".[dev,ray]"
	$(BIN)/python -m pytest -m ray

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One call, so that the pinned torch and everything that depends on it are resolved together.
$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
