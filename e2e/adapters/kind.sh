# shellcheck shell=bash
# CLUSTER=kind: needs docker, kind, kubectl and helm on PATH. Sourced by e2e/run.
# Untested: only bare.sh has been run so far.
name=agentserving-e2e
kubeconfig=${TMPDIR:-/tmp}/$name.kubeconfig

cluster_check() {
  local x
  for x in docker kind kubectl helm; do command -v "$x" >/dev/null || { echo "CLUSTER=kind needs $x on PATH" >&2; return 2; }; done
  docker info >/dev/null 2>&1 || { echo "CLUSTER=kind needs Docker's daemon to answer (docker info)" >&2; return 2; }
}
cluster_build() { :; }
cluster_is_up() { kind get clusters 2>/dev/null | grep -qx "$name"; }
cluster_up() {
  if cluster_is_up; then kind export kubeconfig --name "$name" --kubeconfig "$kubeconfig" >&2
  else kind create cluster --name "$name" --kubeconfig "$kubeconfig" --wait 120s >&2
  fi
  echo "$kubeconfig"
}
cluster_down() { kind delete cluster --name "$name" --kubeconfig "$kubeconfig" >&2; rm -f "$kubeconfig"; }
cluster_images() {
  # etcd's image is pulled by the node
  BUILDER="docker build" LOAD="kind load docker-image --name $name" scripts/images.sh agentserving >&2
}
