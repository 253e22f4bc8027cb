#!/usr/bin/env bash
# Writes requirements-image.txt: what the image installs, each package with the hashes of its files. Run it after a
# change of constraints.txt or of the dependencies in pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --generate-hashes \
  --python-version 3.11 --python-platform x86_64-manylinux_2_36 --constraint constraints.txt \
  --extra server --extra operator --extra otel pyproject.toml -o requirements-image.txt
