#!/usr/bin/env bash
# The generated code and the client load on the oldest and the newest protobuf that pyproject.toml allows.
set -euo pipefail
cd "$(dirname "$0")/.."
program='
import importlib, pkgutil, google.protobuf, agentserving.v1
for module in pkgutil.iter_modules(agentserving.v1.__path__):
    importlib.import_module("agentserving.v1." + module.name)
for module in pkgutil.walk_packages(agentserving.__path__, "agentserving."):
    importlib.import_module(module.name)
for name in agentserving.__all__:
    getattr(agentserving, name)
from agentserving.contract import policy, policy_message
assert policy_message.policy_from(policy_message.policy_to(policy.ATLAS)) == policy.ATLAS
print("protobuf", google.protobuf.__version__, end=" ", flush=True)'
for pair in "protobuf==5.29.6 grpcio==1.71.2" "protobuf>=7,<8 grpcio>=1.80"; do
  read -r protobuf grpcio <<<"$pair"
  PYTHONPATH=proto uv run --quiet --isolated --no-project --python 3.11 \
    --with "$protobuf" --with "$grpcio" --with googleapis-common-protos --with grpcio-status --with msgspec --with cryptography python -W ignore -c "$program"
done
