# Commands of the project; `make help` lists them. Every target sets up what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
UV := $(shell command -v uv || echo "python3 -m uv")
RUN := .venv/bin
PYTHON ?= 3.11

.PHONY: help setup demo test test-matrix bench paper e2e-api e2e images check proto crd clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

setup: .venv/.stamp ## the project's environment in .venv

.venv/.stamp: pyproject.toml constraints.txt
	@$(UV) --version >/dev/null 2>&1 || python3 -m pip install --quiet uv
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip install --quiet --python .venv/bin/python --constraint constraints.txt --group dev --editable '.[server,cli,operator,dev-etcd]'
	@touch $@

demo: setup ## the same agent programs under FCFS and under ATLAS, on two real vLLM engines
	$(RUN)/agentserving demo

test: setup ## all tests: unit, property, integration with real etcd and real CPU vLLM
	$(RUN)/python -m agentserving_cli.local.vllm_env
	$(RUN)/python -m pytest

test-matrix: setup ## the scheduler plugin on every vLLM it supports (make test takes the oldest, ours and the newest)
	$(RUN)/python -m agentserving_cli.local.vllm_env
	AGENTSERVING_VLLM_VERSIONS=all $(RUN)/python -m pytest tests/engine/test_vllm_versions.py

bench: setup ## timings and ratios into benchmarks/results
	$(RUN)/python -m benchmarks.run

paper: setup ## the paper's experiments in virtual time into docs/results (QUICK=1: a few minutes)
	$(RUN)/python -m benchmarks.paper $(if $(QUICK),--quick)

e2e-api: setup ## the CRD and the operator on a real API server and etcd (builds kube-apiserver once, with Go)
	[ -n "$${KUBE_APISERVER:-}" ] || e2e/kube/build >/dev/null
	$(RUN)/python -m pytest e2e/cases

e2e: setup ## the whole on a real cluster: CLUSTER=bare (root, Go, Debian 12; builds it once) or kind
	e2e/run

images: ## both images with docker, podman or buildah; VLLM_IMAGE=name@sha256:... pins what the engine stands on
	scripts/images.sh

check: setup ## ruff, mypy --strict, import-linter, buf, generated code; changes nothing
	scripts/check.sh

proto: ## writes the generated code again
	scripts/proto.sh

crd: setup ## writes the CustomResourceDefinition and the chart's table of values again
	$(RUN)/python -m agentserving_operator.spec.crd charts/agentserving/files/agentservingclusters.yaml
	$(RUN)/python scripts/values_table.py >charts/agentserving/README.md

clean: ## removes the environment and caches of the checkout
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
