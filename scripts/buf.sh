#!/usr/bin/env bash
# Runs buf, which is installed once for each version: scripts/buf.sh lint.
set -euo pipefail
version=1.75.0
home="${XDG_CACHE_HOME:-$HOME/.cache}/agentserving/buf-$version"
if [ ! -x "$home/node_modules/.bin/buf" ]; then
  npm install --silent --no-audit --no-fund --prefix "$home" "@bufbuild/buf@$version" >/dev/null 2>&1
fi
exec "$home/node_modules/.bin/buf" "$@"
