"""The sidecar's gRPC: its stream to the leader and the service it offers. The only package that knows protobuf."""
