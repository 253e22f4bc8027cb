# Commands of the project; `make help` lists them. Each target sets up what it needs, unless its line says otherwise.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
UV := $(shell command -v uv || echo "python3 -m uv")
RUN := .venv/bin
PYTHON ?= 3.11

.PHONY: help setup demo test test-busy test-matrix bench bench-peers scale paper e2e-api e2e e2e-upgrade e2e-autoscalers e2e-vllm-nodes agents epp-conformance skew images check docs sbom release fuzz proto crd clean

help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

setup: .venv/.stamp ## create the environment in .venv

.venv/.stamp: pyproject.toml constraints.txt
	@$(UV) --version >/dev/null 2>&1 || python3 -m pip install --quiet uv
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip install --quiet --python .venv/bin/python --constraint constraints.txt --group dev --editable '.[server,cli,operator,dev-etcd]'
	@touch $@

demo: setup ## run the same agent programs under FCFS and the default policy, on two real vLLM engines (CPU)
	$(RUN)/agentserving demo

test: setup ## run all tests: unit, property, integration with real etcd and real CPU vLLM
	$(RUN)/python -m agentserving_cli.local.vllm_env
	$(RUN)/python -m pytest

# Workers of stress-ng beside the tests, and what they run (any arguments of pytest).
BUSY_CPUS ?= 2
TESTS ?=

test-busy: setup ## run all tests under a CPU load (needs stress-ng): BUSY_CPUS=2, TESTS="tests/gateway -x" for a part
	command -v stress-ng >/dev/null || { echo "stress-ng is not installed: apt-get install stress-ng" >&2; exit 2; }
	$(RUN)/python -m agentserving_cli.local.vllm_env
	stress-ng --quiet --cpu $(BUSY_CPUS) & load=$$!; trap 'kill $$load' EXIT; $(RUN)/python -m pytest $(TESTS)

test-matrix: setup ## test the scheduler plugin on every supported vLLM (`make test` takes the oldest, ours and the newest)
	$(RUN)/python -m agentserving_cli.local.vllm_env
	AGENTSERVING_VLLM_VERSIONS=all $(RUN)/python -m pytest tests/engine/test_vllm_versions.py

bench: setup ## measure timings and ratios into benchmarks/results
	$(RUN)/python -m benchmarks.run

bench-peers: setup ## measure the front, Envoy, nginx, haproxy, litellm and, with EPP_BIN, llm-d (needs gcc; installs them)
	scripts/peers.sh $(RUN)/python -m benchmarks.peers --out benchmarks/results/peers.json

scale: setup ## measure how the control plane grows with programs and engines (QUICK=1: small, writes nothing)
	$(RUN)/python -m benchmarks.scale $(if $(QUICK),--quick)
	$(if $(QUICK),,$(RUN)/python -m benchmarks.scale_report)

paper: setup ## run the paper's experiments in virtual time into docs/results (an hour; QUICK=1: a few minutes)
	$(RUN)/python -m benchmarks.paper $(if $(QUICK),--quick)

e2e-api: setup ## test the CRD and the operator on a real API server and etcd (builds kube-apiserver once, with Go)
	[ -n "$${KUBE_APISERVER:-}" ] || e2e/kube/build >/dev/null
	command -v kubectl >/dev/null || e2e/kube/build kubectl >/dev/null
	$(RUN)/python -m pytest e2e/cases

e2e: setup ## test everything on a real cluster: CLUSTER=bare (root, Go, Debian 12; builds it once) or kind
	e2e/run

e2e-vllm-nodes: setup ## compute with real vLLM (CPU) over two pods of a LeaderWorkerSet, in ten minutes
	E2E_SLOW=1 e2e/run e2e/nodes/test_engine_groups.py

e2e-autoscalers: setup ## scale by the real KEDA, and by an HPA with prometheus-adapter (builds KEDA once: half an hour)
	E2E_WITH=autoscalers e2e/run e2e/autoscalers

# A part of the table, as pytest's -k takes it: CLIENTS="simulator and (aider or LangGraph)".
CLIENTS ?=

agents: setup ## run 14 agents and frameworks (npm, pip, Go) on simulated engines and real vLLM, in 15 minutes; CLIENTS="Codex or aider" for a part
	$(RUN)/python -m agentserving_cli.local.vllm_env
	$(RUN)/python -m pytest -v $(if $(CLIENTS),-k "$(CLIENTS)") e2e/clients

epp-conformance: setup ## drive the endpoint picker with the Gateway API Inference Extension's own Go test tools (needs Go)
	$(RUN)/python e2e/gaie/run.py

# The earlier commit; by default the newest that is half a day older.
BASE ?= $(shell git rev-list -1 --before=$$(($$(git show -s --format=%ct HEAD) - 43200)) HEAD)

skew: setup ## run an earlier commit's cluster with today's control plane and back, under load: BASE=commit
	$(RUN)/python e2e/skew/run.py "$(BASE)"

e2e-upgrade: setup ## upgrade an earlier commit's chart on a real cluster and roll it back, under load: BASE=commit
	E2E_BASE=$(BASE) e2e/run e2e/upgrade

images: ## build both images with docker, podman or buildah; VLLM_IMAGE=name@sha256:... pins the engine's base
	scripts/images.sh

check: setup ## run ruff, mypy --strict, bandit, import-linter, buf, and compare generated files; changes nothing
	scripts/check.sh

docs: setup ## build the documentation as a site into build/site; broken links fail
	$(UV) pip install --quiet --python .venv/bin/python --constraint constraints.txt --group docs
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict --quiet

sbom: setup ## list what the image installs, as CycloneDX JSON, in dist/sbom.json
	scripts/sbom.sh dist/sbom.json

# A PEM file with an ECDSA key, without which nothing is signed; and the file of images by digest that it takes then.
KEY ?=
IMAGES ?=

release: setup ## put all that a release publishes into dist/release; KEY=key.pem IMAGES=images.txt signs and pins
	$(RUN)/python scripts/release.py $(if $(KEY),--key "$(KEY)") $(if $(IMAGES),--images "$(IMAGES)")

# Sequences of RPCs that are tried; CI tries fifty.
FUZZ_EXAMPLES ?= 100000

# Seconds for each door.
FUZZ_SECONDS ?= 900

fuzz: setup ## look for sequences of RPCs and bytes that break something (hours; FUZZ_EXAMPLES=100 FUZZ_SECONDS=60)
	AGENTSERVING_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(RUN)/python -m pytest -q tests/fuzz
	$(UV) pip install --quiet --python $(RUN)/python --constraint constraints.txt atheris
	for target in channel credentials frames http rows rpc; do \
	  PYTHONPATH=tests $(RUN)/python -m fuzz.grow $$target $(FUZZ_SECONDS); \
	done

proto: setup ## regenerate the protobuf code
	scripts/proto.sh

crd: setup ## regenerate the CustomResourceDefinition, its reference and the chart's table of values
	$(RUN)/python -m agentserving_operator.spec.crd charts/agentserving/files
	$(RUN)/python scripts/values_table.py >charts/agentserving/README.md
	$(RUN)/python scripts/crd_reference.py >docs/crd.md

clean: ## remove the environment and caches of this checkout
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
