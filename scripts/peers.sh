#!/usr/bin/env bash
# Installs the fronts that package registries have, and runs a command with the variables that name them:
#   scripts/peers.sh python -m benchmarks.peers
# nginx and haproxy come with apt, for root. llm-d's picker is in no registry: set EPP_BIN to a build of it.
set -euo pipefail
litellm_version=1.108.7
home="${XDG_CACHE_HOME:-$HOME/.cache}/agentserving/litellm-$litellm_version"
if [ -z "${LITELLM_BIN:-}" ]; then
  if [ ! -x "$home/bin/litellm" ]; then
    python3 -m uv venv --quiet --python 3.11 "$home"
    python3 -m uv pip install --quiet --python "$home/bin/python" "litellm[proxy]==$litellm_version" || rm -rf "$home"
  fi
  [ -x "$home/bin/litellm" ] && export LITELLM_BIN="$home/bin/litellm"
fi
missing=()
command -v "${NGINX_BIN:-nginx}" >/dev/null || missing+=(nginx)
command -v "${HAPROXY_BIN:-haproxy}" >/dev/null || missing+=(haproxy)
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get install --quiet --quiet --yes "${missing[@]}" >/dev/null || echo "apt-get install ${missing[*]} failed" >&2
fi
exec "$@"
