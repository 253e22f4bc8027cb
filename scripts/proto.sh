#!/usr/bin/env bash
# Writes the generated code of agentserving.v1 (and of the etcd wire subset) with the oldest compatible generator:
# gencode 5.29 loads on protobuf 5.29 to 7. Usage: scripts/proto.sh [OUTPUT_DIR]   (default: proto)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-proto}
mkdir -p "$out"
run() {
  uv tool run --quiet --python 3.11 --from grpcio-tools==1.71.2 --with 'setuptools<81' --with mypy-protobuf==3.6.0 \
    python -m grpc_tools.protoc "$@"
}
run -Iproto --python_out="$out" --mypy_out="quiet:$out" --grpc_python_out="$out" \
  proto/agentserving/v1/*.proto

# The etcd subset is the control plane's own business: it is not in proto/. Its output stands beside its source.
etcd=controlplane/agentserving_controlplane/store/etcd
if [ "$out" = proto ]; then etcd_out=$etcd; else etcd_out=$out/etcd; fi
mkdir -p "$etcd_out"
run -I"$etcd" --python_out="$etcd_out" --mypy_out="quiet:$etcd_out" "$etcd/wire.proto"

# So is the subset of Envoy's access log that the picker reads.
envoy=gateway/agentserving_gateway/exchange_log
if [ "$out" = proto ]; then envoy_out=$envoy; else envoy_out=$out/envoy; fi
mkdir -p "$envoy_out"
run -I"$envoy" --python_out="$envoy_out" --mypy_out="quiet:$envoy_out" "$envoy/envoy_access_log.proto"

# And the subset of Envoy's external processing API, for gateways of others.
ext_proc=gateway/agentserving_gateway/ext_proc
if [ "$out" = proto ]; then ext_proc_out=$ext_proc; else ext_proc_out=$out/ext_proc; fi
mkdir -p "$ext_proc_out"
run -I"$ext_proc" --python_out="$ext_proc_out" --mypy_out="quiet:$ext_proc_out" "$ext_proc/envoy_ext_proc.proto"

# And the subset of etcd's API with which its members join again, in the operator.
member=operator/agentserving_operator
if [ "$out" = proto ]; then member_out=$member; else member_out=$out/member; fi
mkdir -p "$member_out"
run -I"$member" --python_out="$member_out" --mypy_out="quiet:$member_out" "$member/etcd_cluster.proto"
