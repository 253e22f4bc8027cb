#!/usr/bin/env bash
# Writes a software bill of materials (CycloneDX, JSON) of what the image installs. Usage: scripts/sbom.sh OUTPUT.json
# The packages are installed as in the image, by hash, into an environment of their own: what is listed is what is there.
set -euo pipefail
out=$(realpath -m "${1:?usage: scripts/sbom.sh OUTPUT.json}")
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
uv venv --quiet --python 3.11 "$scratch/env"
uv pip install --quiet --python "$scratch/env/bin/python" --require-hashes -r requirements-image.txt
uv pip install --quiet --python "$scratch/env/bin/python" --no-deps .
mkdir -p "$(dirname "$out")"
uv tool run --quiet --from cyclonedx-bom==7.3.1 cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
  --mc-type application --output-format JSON --output-file "$out" "$scratch/env/bin/python"
