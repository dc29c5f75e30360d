# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint clean

demo: $(STAMP)openvino
	$(BIN)/foveate demo --out runs/demo

test: $(STAMP)dev
	$(BIN)/python -m pytest -n 2 --dist loadscope tests

lint: $(STAMP)dev
	$(BIN)/ruff check foveate scripts tests

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "foveate needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# The environment is rebuilt only when pyproject.toml or constraints.txt change.
$(STAMP)openvino: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[openvino]'
	touch $@

$(STAMP)dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[openvino,onnx,wavelets,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
