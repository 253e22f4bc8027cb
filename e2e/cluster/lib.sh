# shellcheck shell=bash
# Settings and helpers shared by the cluster scripts; sourced, not run. Every setting may be overridden by environment.
# shellcheck disable=SC2034  # most settings are read by the scripts that source this file
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

: "${ASC_NAME:=asc}"                     # prefix of the bridge, interfaces, nft table and cgroup
: "${ASC_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/agentserving/cluster}"
: "${ASC_STATE:=$ASC_CACHE/state}"       # everything one running cluster owns; `down` removes it
: "${ASC_NODE_NET:=172.30.250}"          # .1 is the control plane (this machine), .1N is node N
: "${ASC_POD_NET:=10.244}"               # node N gives its pods ASC_POD_NET.N.0/24
: "${ASC_SVC_NET:=10.96}"                # Services; ASC_SVC_NET.0.10 is the cluster DNS
: "${ASC_API_PORT:=6443}"
: "${ASC_ETCD_PORT:=12379}"
: "${ASC_ETCD_FLAGS:=--unsafe-no-fsync}"
: "${ASC_APISERVER_FLAGS:=}" "${ASC_CONTROLLER_FLAGS:=}" "${ASC_SCHEDULER_FLAGS:=}" "${ASC_KUBELET_FLAGS:=}"
: "${ASC_BASE_IMAGE:=docker.io/library/python:3.11-slim-bookworm}"

BIN=$ASC_CACHE/bin IMAGES=$ASC_CACHE/images PKI=$ASC_STATE/pki
HOST_IP=$ASC_NODE_NET.1 DNS_IP=$ASC_SVC_NET.0.10
PAUSE_IMAGE=registry.local/asc/pause:1 DNS_IMAGE=registry.local/asc/coredns:1
STORAGE_IMAGE=registry.local/asc/local-path-provisioner:1
ETCD_IMAGE=quay.io/coreos/etcd:v3.6.16 # a stand-in under the name that the chart has
# For `build autoscalers`; their own manifests have these names.
KEDA=2.21.0 PROMETHEUS_ADAPTER=0.12.0 PROMETHEUS=3.16.0
KEDA_IMAGE=ghcr.io/kedacore/keda:$KEDA KEDA_ADAPTER_IMAGE=ghcr.io/kedacore/keda-metrics-apiserver:$KEDA
PROMETHEUS_ADAPTER_IMAGE=registry.k8s.io/prometheus-adapter/prometheus-adapter:v$PROMETHEUS_ADAPTER
PROMETHEUS_IMAGE=docker.io/prom/prometheus:v$PROMETHEUS
AUTOSCALER_IMAGES="$KEDA_IMAGE $KEDA_ADAPTER_IMAGE $PROMETHEUS_ADAPTER_IMAGE $PROMETHEUS_IMAGE"
LWS=$(cat "$HERE/../kube/lws.version")
LWS_IMAGE=registry.k8s.io/lws/lws:$LWS
export PATH="$BIN:$PATH"

say() { echo "$*" >&2; }
die() { say "error: $*"; exit 1; }
node_ip() { echo "$ASC_NODE_NET.$((10 + $1))"; }
nodes() { [ ! -d "$ASC_STATE/nodes" ] || find "$ASC_STATE/nodes" -mindepth 1 -maxdepth 1 -printf '%f\n' | sort -n; }
ctr_node() { local n=$1; shift; ctr -a "$ASC_STATE/nodes/$n/containerd.sock" -n k8s.io "$@"; }
# wait_for SECONDS WHAT COMMAND...: polls until the command succeeds.
wait_for() {
  local end=$((SECONDS + $1)) what=$2; shift 2
  until ("$@") >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || die "$what: not within the time allowed; see $ASC_STATE/log"
    sleep 0.2
  done
}

# A process is recorded as "pid start-time", so that a reused pid is never signalled.
started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" {print $20}'; } # nothing for a zombie
pid_of() {
  local pid at
  read -r pid at 2>/dev/null <"$ASC_STATE/proc/$1.pid" || return 1
  [ -n "$at" ] && [ "$(started_at "$pid")" = "$at" ] && echo "$pid"
}
# spawn NAME COMMAND...: records the command, so that `proc start NAME` can repeat it, and starts it.
spawn() {
  local name=$1; shift
  mkdir -p "$ASC_STATE/proc" "$ASC_STATE/log"
  { echo '#!/bin/sh'; printf 'exec'; printf ' %q' "$@"; echo; } >"$ASC_STATE/proc/$name.sh"
  respawn "$name"
}
respawn() {
  local name=$1 pid
  [ -f "$ASC_STATE/proc/$name.sh" ] || die "no process called $name"
  pid_of "$name" >/dev/null && return
  setsid sh "$ASC_STATE/proc/$name.sh" >>"$ASC_STATE/log/$name.log" 2>&1 </dev/null 9>&- &
  pid=$!
  echo "$pid $(started_at "$pid")" >"$ASC_STATE/proc/$name.pid"
}
# stop NAME [SIGNAL]: TERM by default, KILL after ten seconds; returns once the process is gone.
stop() {
  local pid i
  pid=$(pid_of "$1") || return 0
  kill -CONT "$pid" 2>/dev/null || true
  kill "-${2:-TERM}" "$pid" 2>/dev/null || true
  for ((i = 0; i < 100; i++)); do pid_of "$1" >/dev/null || return 0; sleep 0.1; done
  kill -KILL "$pid" 2>/dev/null || true
  while pid_of "$1" >/dev/null; do sleep 0.1; done
}
# cert NAME SUBJECT [SANS]: a certificate signed by the cluster's authority.
cert() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$2" \
    -keyout "$PKI/$1.key" -out "$PKI/$1.csr" 2>/dev/null
  openssl x509 -req -in "$PKI/$1.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -set_serial "0x$(openssl rand -hex 8)" -days 30 \
    -out "$PKI/$1.crt" -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=clientAuth,serverAuth\n' "${3:-DNS:$1}") 2>/dev/null
}
# kubeconfig NAME: for the client certificate of that name, with the keys inside, so that the file can be copied away.
kubeconfig() {
  cat >"$ASC_STATE/$1.kubeconfig" <<EOF
apiVersion: v1
kind: Config
current-context: $ASC_NAME
contexts: [{name: $ASC_NAME, context: {cluster: $ASC_NAME, user: $1}}]
clusters:
- name: $ASC_NAME
  cluster: {server: "https://$HOST_IP:$ASC_API_PORT", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")}
users:
- name: $1
  user: {client-certificate-data: $(base64 -w0 "$PKI/$1.crt"), client-key-data: $(base64 -w0 "$PKI/$1.key")}
EOF
}
builder() { # builder ARGS...: buildah with the cache's own storage; overlay where the machine can, else vfs
  local driver=vfs
  [ -f "$ASC_CACHE/buildah.driver" ] && driver=$(cat "$ASC_CACHE/buildah.driver")
  buildah --storage-driver "$driver" --root "$ASC_CACHE/buildah/$driver" --runroot "$ASC_CACHE/buildah/run" "$@"
}
