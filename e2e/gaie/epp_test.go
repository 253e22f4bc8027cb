package gaie

import (
	_ "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	_ "google.golang.org/grpc/health/grpc_health_v1"
	_ "sigs.k8s.io/gateway-api-inference-extension/test/integration"
)
