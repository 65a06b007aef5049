# Every target is idempotent and sets up what it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two at a time, a file's tests together: most of their time goes by waiting for processes.
SPREAD ?= -n 2 --dist loadfile
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM := false

.PHONY: setup lock check test test-vllm test-containers demo bench-staleness bench-train bench-resume bench-judge \
        bench-judge-memory bench-judge-overload bench-judge-vllm bench-injections bench-probe \
        bench-probe-real bench-guard audit check-alerts chaos-alerts chaos clean help

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

setup: $(STAMP) ## the environment in .venv

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; name another with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@# On all cores, where pip compiles on one. Some packages carry templates that are no Python: passed over.
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $(STAMP)

lock: ## write constraints.txt from what is installed
	@{ sed -n 1p constraints.txt; $(BIN)/pip list --exclude-editable --format=freeze | grep -vE '^(pip|setuptools|wheel)==' | sed 's/+cpu$$//'; } > constraints.new
	@mv constraints.new constraints.txt

check: $(STAMP) ## lint, types, unit and structure tests: under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/unit tests/structure -q $(SPREAD)

test: $(STAMP) ## all that needs no container and no vLLM
	$(BIN)/pytest tests -q $(SPREAD)

test-vllm: $(STAMP) ## the judge on a real vLLM (CPU; makes .venv-vllm, 4 GB)
	deploy/vllm_cpu_env.sh
	$(BIN)/pytest tests/vllm_served -q

test-containers: $(STAMP) ## the compose file in real containers: Docker, or podman with podman-compose
	$(BIN)/pytest tests/containers -q -s

demo: $(STAMP) ## four fine-tunes of a tiny model on partly harmful data, compared
	$(BIN)/tether demo

bench-staleness: $(STAMP) ## what waiting for the judge costs a step
	$(BIN)/python -m benchmarks.staleness

bench-train: $(STAMP) ## what safety costs a training run: waiting, references, loss
	$(BIN)/python -m benchmarks.train

bench-resume: $(STAMP) ## a run killed at 20 steps against one that was not
	$(BIN)/python -m benchmarks.resume

bench-judge: $(STAMP) ## the judge's queue against bare Redis, bare FastAPI and other queues
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.judge

bench-judge-memory: $(STAMP) ## what API and worker hold after 20,000 and 200,000 items
	$(BIN)/python -m benchmarks.judge_memory

bench-judge-overload: $(STAMP) ## twice the load that the judge can carry
	$(BIN)/python -m benchmarks.judge_overload

bench-judge-vllm: $(STAMP) ## what the judge service costs before vLLM
	deploy/vllm_cpu_env.sh
	$(BIN)/python -m benchmarks.judge_vllm

bench-injections: $(STAMP) ## what attacks do to the small judge's scores
	$(BIN)/python -m benchmarks.injections

bench-probe: $(STAMP) ## the activation critic on the embedded world, beside controls
	$(BIN)/python -m benchmarks.probe

bench-probe-real: $(STAMP) ## the same on real prompts: TETHER_REAL_DATA=DIR
	$(BIN)/python -m benchmarks.probe_real

bench-guard: $(STAMP) ## a guard's answer against one forward of its model
	$(BIN)/python -m benchmarks.guard

audit: ## known vulnerabilities of what is locked; needs the network
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet 'pip-audit>=2.10,<3'; }
	.venv-audit/bin/pip-audit --strict -s osv -r constraints.txt --no-deps --disable-pip

check-alerts: ## promtool on Prometheus's configuration and the alert rules
	deploy/check_alerts.sh

chaos-alerts: $(STAMP) ## each alert's fault under a real Prometheus, mended by its runbook (7 minutes)
	$(BIN)/python -m benchmarks.chaos_alerts

chaos: $(STAMP) ## 10,000 items while workers, APIs and Redis are killed, three seeds; then chaos-alerts
	$(BIN)/python -m benchmarks.chaos
	$(MAKE) chaos-alerts

clean: ## remove the environment and what runs left
	rm -rf $(VENV) runs state build *.egg-info
