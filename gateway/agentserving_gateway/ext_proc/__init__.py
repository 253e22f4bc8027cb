"""The picker as an endpoint picker of the Gateway API Inference Extension, for gateways that are not our own Envoy.

A gateway whose InferencePool names this picker opens one external processing stream per HTTP request (Envoy's ext_proc
over gRPC; docs/proposals/004-endpoint-picker-protocol of kubernetes-sigs/gateway-api-inference-extension):

    messages        the door: Envoy's messages from and to values
    conversation    one stream: which message is answered with what, and how the call ends
    service         the gRPC server with its health checks and certificates
    self_signed     a certificate for gateways that encrypt without verifying
"""
