#!/usr/bin/env bash
# Builds the images with docker, podman or buildah, whichever is there. Usage: scripts/images.sh [agentserving] [engine]
#   VLLM_IMAGE=name@sha256:...   what the engine image stands on      PYTHON_IMAGE=...   the other one, and the build
#   IMAGE=... ENGINE_IMAGE=...   names of what is built; by default the ones that the chart installs
#   BUILDER="docker build"       any command that takes -t, -f, --build-arg and a directory
#   LOAD="kind load docker-image"   run with each name once it is built
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' proto/agentserving/_version.py)
: "${IMAGE:=docker.io/agentserving/agentserving:$version}" "${ENGINE_IMAGE:=docker.io/agentserving/engine:$version}"
found() { command -v "$1" >/dev/null && { [ "$1" != docker ] || docker info >/dev/null 2>&1; }; }
if [ -z "${BUILDER:-}" ]; then
  if found docker; then BUILDER="docker build"
  elif found podman; then BUILDER="podman build"
  elif found buildah; then BUILDER="buildah bud --layers"
  else echo "no docker (with its daemon), podman or buildah: install one, or set BUILDER" >&2; exit 1
  fi
fi
arguments=()
for name in PYTHON_IMAGE VLLM_IMAGE; do [ -z "${!name:-}" ] || arguments+=(--build-arg "$name=${!name}"); done
[ $# -gt 0 ] || set -- agentserving engine
for what in "$@"; do
  case $what in
  agentserving) file=Containerfile name=$IMAGE ;;
  engine) file=engine-image/Containerfile name=$ENGINE_IMAGE ;;
  *) echo "usage: scripts/images.sh [agentserving] [engine]" >&2; exit 2 ;;
  esac
  started=$SECONDS
  # shellcheck disable=SC2086 # BUILDER is a command and its first arguments
  $BUILDER "${arguments[@]}" -t "$name" -f "$file" . >&2
  echo "$name: $((SECONDS - started)) s" >&2
  # shellcheck disable=SC2086
  [ -z "${LOAD:-}" ] || $LOAD "$name" >&2
  echo "$name"
done
