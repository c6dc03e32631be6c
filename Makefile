# Everything runs in .venv, which the first command creates.  Options:
#   PYTHON=python3.12   the Python that creates .venv (3.10 or newer)
#   TORCH=cpu           PyTorch without CUDA libraries, remembered for later runs
#   JOBS=4              how many processes share the tests
#   SECONDS=60          how long `make fuzz` goes on
PYTHON ?= python3
BIN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)
JOBS ?= 2
SECONDS ?= 600
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout=600 tests book

.PHONY: help setup book pdf links notebooks browser check test test-all matrix fuzz audit lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## Create .venv and install the tested versions into it
	@command -v $(PYTHON) >/dev/null || { echo "No '$(PYTHON)' found. Install Python 3.10 or newer, or say: make PYTHON=..."; exit 1; }
	@$(PYTHON) tools/bootstrap.py $(if $(TORCH),--torch $(TORCH))

book: setup ## Render the book
	$(BIN)/jupyter-book build . --all -W -n --keep-going
	@echo "Book ready: _build/html/index.html"

pdf: book browser ## Print the book as one PDF, which the pages then link
	$(BIN)/python tools/pdf.py

links: book ## Check all links, also those to other sites, which are asked once a month at most
	$(BIN)/python tools/links.py --external

notebooks: setup ## Run every notebook and store its outputs
	$(BIN)/python tools/run_notebook.py

browser: setup ## Install a Chromium for the tests of the pages, if there is none
	$(BIN)/python tools/browser.py

check: setup ## Style and types of the code, the form of the notebooks: a minute, where the tests take many
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/bandit --configfile pyproject.toml --quiet --recursive advtrain tools
	$(BIN)/python tools/lint_notebooks.py
	$(BIN)/python tools/sync.py --check

test: setup ## Test the package, every notebook against its stored outputs, and every page in a browser
	$(PYTEST)

test-all: setup ## The same with the slow tests
	$(PYTEST) -m ""

fuzz: setup ## Give the readers of files damaged ones for ten minutes; SECONDS=60 for one
	$(BIN)/python tools/fuzz.py --seconds $(SECONDS)

audit: ## For maintainers: ask whether weaknesses of the locked versions are known (needs pip-audit)
	pip-audit --requirement requirements.lock --require-hashes --disable-pip

matrix: ## For maintainers: all tests with the oldest and the newest versions that are allowed (needs uv)
	uv run --no-project --python ">=3.11" tools/matrix.py oldest $(if $(TORCH),--torch $(TORCH))
	uv run --no-project --python ">=3.11" tools/matrix.py newest $(if $(TORCH),--torch $(TORCH))

lock: ## For maintainers: resolve requirements.lock anew (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --generate-hashes --no-annotate \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet --output-file requirements.lock

clean: ## Remove what was built or cached (keeps .venv and runs/)
	rm -rf .venv-oldest .venv-newest _build build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name .venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
