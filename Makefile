# Everything from nothing but Python 3.11+: the first target that needs it creates .venv and installs the project into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The folders as they are imported once installed: nemodiff_trt and its four subpackages.
TYPED := build/typing/nemodiff_trt

.PHONY: demo test lint format typecheck bench clean

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
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One call, so that the pinned torch and everything that depends on it are resolved together.
$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
