module agentserving.io

go 1.24

require (
	google.golang.org/grpc v1.76.0
	google.golang.org/protobuf v1.36.10
)

tool (
	google.golang.org/grpc/cmd/protoc-gen-go-grpc
	google.golang.org/protobuf/cmd/protoc-gen-go
)
