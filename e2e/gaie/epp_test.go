// Package gaie drives the endpoint picker with the Gateway API Inference Extension's own tools: Envoy's official message
// types, and the request builders and the runner of its hermetic tests (test/integration).
//
// EPP_ADDRESS is the picker's address (plain), EPP_ENDPOINTS its engines, separated by commas.
package gaie

import (
	"os"
	"strings"
	"testing"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/go-logr/logr"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"sigs.k8s.io/gateway-api-inference-extension/pkg/epp/metadata"
	"sigs.k8s.io/gateway-api-inference-extension/test/integration"
)

func connection(t *testing.T) *grpc.ClientConn {
	t.Helper()
	address := os.Getenv("EPP_ADDRESS")
	require.NotEmpty(t, address, "EPP_ADDRESS")
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func stream(t *testing.T) extprocv3.ExternalProcessor_ProcessClient {
	t.Helper()
	client, err := extprocv3.NewExternalProcessorClient(connection(t)).Process(t.Context())
	require.NoError(t, err)
	return client
}

func engines() []string { return strings.Split(os.Getenv("EPP_ENDPOINTS"), ",") }

// destination checks that header and metadata name the same endpoints, and returns them.
func destination(t *testing.T, response *extprocv3.ProcessingResponse) []string {
	t.Helper()
	header := ""
	for _, each := range response.GetRequestHeaders().GetResponse().GetHeaderMutation().GetSetHeaders() {
		if each.GetHeader().GetKey() == metadata.DestinationEndpointKey {
			header = string(each.GetHeader().GetRawValue())
		}
	}
	require.NotEmpty(t, header)
	outer := response.GetDynamicMetadata().GetFields()[metadata.DestinationEndpointNamespace].GetStructValue()
	require.Equal(t, header, outer.GetFields()[metadata.DestinationEndpointKey].GetStringValue())
	found := strings.Split(header, ",")
	for _, each := range found {
		require.Contains(t, engines(), each)
	}
	return found
}

func TestDestinationInHeaderAndMetadata(t *testing.T) {
	requests := integration.ReqRaw(map[string]string{":method": "POST", ":path": "/v1/completions"}, `{"prompt":`, `"x"}`)
	responses, err := integration.StreamedRequest(t, stream(t), requests, 3)
	require.NoError(t, err)
	require.Len(t, responses, 3)
	destination(t, responses[0])
	body := ""
	for _, each := range responses[1:] {
		body += string(each.GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetBody())
	}
	require.Equal(t, `{"prompt":"x"}`, body)
	last := responses[2].GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse()
	require.True(t, last.GetEndOfStream())
}

func TestRequestOfTheHermeticSuite(t *testing.T) {
	responses, err := integration.StreamedRequest(t, stream(t), integration.ReqLLM(logr.Discard(), "hello", "m", "m"), 2)
	require.NoError(t, err)
	require.Len(t, responses, 2)
	destination(t, responses[0])
}

func TestRequestWithoutBody(t *testing.T) {
	requests := integration.ReqHeaderOnly(map[string]string{":method": "GET", ":path": "/v1/models"})
	responses, err := integration.StreamedRequest(t, stream(t), requests, 1)
	require.NoError(t, err)
	require.Len(t, responses, 1)
	destination(t, responses[0])
}

func TestSubsetIsRespected(t *testing.T) {
	for _, one := range engines() {
		requests := integration.GenerateStreamedRequestSet(logr.Discard(), "hello", "", "", []string{one})
		responses, err := integration.StreamedRequest(t, stream(t), requests, 2)
		require.NoError(t, err)
		require.Len(t, responses, 2)
		require.Equal(t, []string{one}, destination(t, responses[0]))
	}
}

func TestSubsetWithoutEndpointIs503(t *testing.T) {
	for name, subset := range map[string][]string{"foreign": {"192.0.2.1:8000"}, "empty": {}} {
		t.Run(name, func(t *testing.T) {
			requests := integration.GenerateStreamedRequestSet(logr.Discard(), "hello", "", "", subset)
			responses, err := integration.StreamedRequest(t, stream(t), requests, 1)
			require.NoError(t, err)
			require.Len(t, responses, 1)
			status := responses[0].GetImmediateResponse().GetStatus().GetCode()
			require.Equal(t, typev3.StatusCode_ServiceUnavailable, status)
		})
	}
}

func TestHealth(t *testing.T) {
	client := grpc_health_v1.NewHealthClient(connection(t))
	for _, service := range []string{"", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"} {
		response, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
		require.NoError(t, err)
		require.Equal(t, grpc_health_v1.HealthCheckResponse_SERVING, response.GetStatus())
	}
}
