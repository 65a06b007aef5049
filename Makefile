# Every target is idempotent and sets up what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM := false

.PHONY: setup lock check test demo bench-staleness clean help

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

setup: $(STAMP) ## the environment in .venv

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; name another with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

lock: ## write constraints.txt from what is installed
	@{ sed -n 1p constraints.txt; $(BIN)/pip freeze --exclude-editable | grep -v '^tether' | sed 's/+cpu$$//'; } > constraints.new
	@mv constraints.new constraints.txt

check: $(STAMP) ## lint, types, unit and structure tests: under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/unit tests/structure -q

test: $(STAMP) ## all that needs no container and no vLLM
	$(BIN)/pytest tests -q

demo: $(STAMP) ## four fine-tunes of a tiny model on partly harmful data, compared
	$(BIN)/tether demo

bench-staleness: $(STAMP) ## what waiting for the judge costs a step
	$(BIN)/python -m benchmarks.staleness

clean: ## remove the environment and what runs left
	rm -rf $(VENV) runs state build *.egg-info
