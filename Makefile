# The commands of this repository. Each makes .venv, with the versions of constraints.txt, if it is
# not there yet, and again when those versions change.
#
#   make demo    run the search_query recipe: verdict and report at the end
#   make test    run the tests
#   make lint    ruff, mypy (strict), codespell, the documentation's links and references
#   make docs    build the documentation into site/
#   make bench   run the comparisons in benchmarks/
#   make clean   remove caches and builds (not .venv, not runs/)

SHELL := bash
BIN := .venv/bin
CODE := paredown eval distill prune export recipes
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint docs bench clean typing
.DEFAULT_GOAL := test

demo: .venv/.demo
	$(BIN)/paredown run search_query

test: .venv/.dev
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

lint: .venv/.dev docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p paredown
	$(BIN)/codespell

docs: .venv/.docs typing
	$(BIN)/mkdocs build --quiet

bench: .venv/.bench
	@for name in capture training compensation pruning calibration intervals \
		outputs loss_memory lm_distill exports repeat_latency stream page; do \
		echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf build dist site *.egg-info .typing .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(CODE) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# .venv/.demo, .venv/.dev and .venv/.bench say that the extra of this name is installed
.venv/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt setuptools
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[$*]'
	@touch $@

# the first Python from 3.11 on; `command -v` alone would take shims that lead nowhere
$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making .venv with $$($$python --version)"; exec $$python -m venv .venv; \
		fi; \
	done; echo "paredown needs Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1

# mypy finds paredown.eval and the others through links named as the packages are
typing:
	@mkdir -p .typing/paredown
	@for file in __init__.py __main__.py py.typed; do ln -sfn ../../paredown/$$file .typing/paredown/$$file; done
	@for folder in $(filter-out paredown,$(CODE)); do ln -sfn ../../$$folder .typing/paredown/$$folder; done
