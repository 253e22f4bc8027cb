#!/usr/bin/env bash
# What `make check` runs. Changes nothing in the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
step() { printf '%-16s' "$1"; shift; "$@" && echo ok; }
step "ruff" ruff check --quiet .
step "format" ruff format --quiet --check .
step "mypy" mypy --no-error-summary proto/agentserving controlplane/agentserving_controlplane \
  process/agentserving_process gateway/agentserving_gateway batches/agentserving_batches cli/agentserving_cli \
  engine-image/agentserving_engine engine-image/agentserving_sidecar \
  simulator/agentserving_simulator simulator/agentserving_replay \
  operator/agentserving_operator
# They call what nothing else type-checks them against, and few of them run in the tests.
step "mypy, tools" env MYPYPATH=e2e:tests mypy --no-error-summary --explicit-package-bases --follow-imports=silent \
  benchmarks examples e2e/gaie
step "bandit" bandit --quiet --recursive --configfile pyproject.toml --exclude '*_pb2.py,*_pb2_grpc.py' \
  proto process controlplane gateway batches cli engine-image simulator operator
step "import-linter" bash -c 'lint-imports --no-cache >/tmp/lint-$$.log 2>&1 || { cat /tmp/lint-$$.log; rm -f /tmp/lint-$$.log; exit 1; }; rm -f /tmp/lint-$$.log'
step "buf" scripts/buf.sh lint
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
scripts/proto.sh "$scratch" >/dev/null
generated() { diff -r --exclude=__pycache__ --exclude=__init__.py --exclude='*.proto' "$scratch/agentserving/v1" proto/agentserving/v1; }
generated_etcd() {
  diff "$scratch/etcd/wire_pb2.py" controlplane/agentserving_controlplane/store/etcd/wire_pb2.py &&
    diff "$scratch/member/etcd_cluster_pb2.py" operator/agentserving_operator/etcd_cluster_pb2.py
}
generated_envoy() {
  diff "$scratch/envoy/envoy_access_log_pb2.py" gateway/agentserving_gateway/exchange_log/envoy_access_log_pb2.py &&
    diff "$scratch/ext_proc/envoy_ext_proc_pb2.py" gateway/agentserving_gateway/ext_proc/envoy_ext_proc_pb2.py
}
step "generated" generated
step "generated envoy" generated_envoy
step "generated etcd" generated_etcd
crd() {
  mkdir "$scratch/crd" && python -m agentserving_operator.spec.crd "$scratch/crd"
  for each in "$scratch"/crd/*; do
    diff "$each" "charts/agentserving/files/${each##*/}" || { echo "run: make crd" >&2; return 1; }
  done
}
step "crd" crd
values() { diff <(python scripts/values_table.py) charts/agentserving/README.md || { echo "run: make crd" >&2; return 1; }; }
step "chart values" values
step "protobuf range" scripts/check_protobuf_range.sh
