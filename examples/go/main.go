// Command agent runs a small agent against a cluster over gRPC: two calls with a tool between them are one program, and
// a second program is cancelled while its call runs.
//
//	export AGENTSERVING_CONTROL_PLANE=... OPENAI_API_KEY=... MODEL=...   # `agentserving up` prints them
//	go run .
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	pb "agentserving.io/proto/agentserving/v1"
	"agentserving.io/sse"
)

// agent is a connection to the control plane; engines are dialled when a call is placed on them.
type agent struct {
	model    string
	programs pb.ProgramServiceClient
	calls    pb.CallServiceClient
}

func dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// ask makes one call of a program and returns its id and its text, as it comes also to `shown`.
func (a *agent) ask(ctx context.Context, program, question string, tokens int, shown io.Writer, after ...string) (
	string, string, error,
) {
	admitted, err := a.calls.AdmitCall(ctx, &pb.AdmitCallRequest{ProgramId: program, ParentCallIds: after})
	if err != nil {
		return "", "", fmt.Errorf("admission: %w", err)
	}
	body, err := json.Marshal(map[string]any{
		"model": a.model, "stream": true, "max_tokens": tokens,
		"messages": []map[string]string{{"role": "user", "content": question}},
	})
	if err != nil {
		return "", "", err
	}
	engine, err := dial(admitted.SidecarAddress)
	if err != nil {
		return "", "", err
	}
	defer engine.Close()
	stream, err := pb.NewCallServiceClient(engine).Generate(ctx, &pb.GenerateRequest{
		Ticket: admitted.Ticket, CallId: admitted.CallId, Path: "/v1/chat/completions", Body: body,
	})
	if err != nil {
		return "", "", err
	}
	answer, err := text(stream, shown)
	return admitted.CallId, answer, err
}

// text joins the pieces of a streamed chat completion.
func text(stream grpc.ServerStreamingClient[pb.GenerateResponse], shown io.Writer) (string, error) {
	head, err := stream.Recv()
	if err != nil {
		return "", err
	}
	pieces, pipe := io.Pipe()
	go func() {
		message := head
		for err == nil {
			if _, err = pipe.Write(message.Chunk); err == nil {
				message, err = stream.Recv()
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		pipe.CloseWithError(err)
	}()
	if head.HttpStatus != 200 {
		reason, _ := io.ReadAll(pieces)
		return "", fmt.Errorf("the engine answered %d: %s", head.HttpStatus, reason)
	}
	var answer strings.Builder
	err = sse.Read(pieces, func(data string) error {
		var event struct {
			Choices []struct{ Delta struct{ Content string } }
		}
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			return fmt.Errorf("an event is not JSON: %w: %s", err, data)
		}
		for _, choice := range event.Choices {
			answer.WriteString(choice.Delta.Content)
			io.WriteString(shown, choice.Delta.Content)
		}
		return nil
	})
	return answer.String(), err
}

// watch prints each change of a program until it is closed.
func (a *agent) watch(ctx context.Context, program string, done chan<- error) {
	stream, err := a.programs.WatchPrograms(ctx, &pb.WatchProgramsRequest{ProgramId: program})
	for err == nil {
		var news *pb.WatchProgramsResponse
		if news, err = stream.Recv(); err != nil {
			break
		}
		for _, each := range news.Changed {
			log.Printf("%s is %v after %d calls", each.ProgramId, each.State, each.CallsCompleted)
			if each.State == pb.ProgramState_PROGRAM_STATE_CLOSED {
				done <- nil
				return
			}
		}
	}
	done <- err
}

// research is the program: a call, a tool, and a call that uses both.
func (a *agent) research(ctx context.Context) error {
	opened, err := a.programs.OpenProgram(ctx, &pb.OpenProgramRequest{Name: "go-research"})
	if err != nil {
		return err
	}
	program := opened.Program.ProgramId
	closed := make(chan error, 1)
	go a.watch(ctx, program, closed)
	first, query, err := a.ask(ctx, program, "What should we look up about queues?", 20, io.Discard)
	if err != nil {
		return err
	}
	// For as long as a tool works, the engine may keep what it has computed for the program.
	wait := &pb.BeginToolWaitRequest{ProgramId: program, Tool: "search", ExpectedUs: 200_000}
	if _, err = a.programs.BeginToolWait(ctx, wait); err != nil {
		return err
	}
	time.Sleep(200 * time.Millisecond)
	if _, err = a.programs.EndToolWait(ctx, &pb.EndToolWaitRequest{ProgramId: program}); err != nil {
		return err
	}
	if _, _, err = a.ask(ctx, program, "Three results on "+query+". Sum up.", 40, os.Stdout, first); err != nil {
		return err
	}
	fmt.Println()
	ended := &pb.CloseProgramRequest{ProgramId: program, Outcome: pb.Outcome_OUTCOME_COMPLETED}
	if _, err = a.programs.CloseProgram(ctx, ended); err != nil {
		return err
	}
	return <-closed
}

// cancelled begins a long call and cancels its program meanwhile, which ends the call in the engine.
func (a *agent) cancelled(ctx context.Context) error {
	opened, err := a.programs.OpenProgram(ctx, &pb.OpenProgramRequest{Name: "go-cancelled"})
	if err != nil {
		return err
	}
	program := opened.Program.ProgramId
	begun := &begun{first: make(chan struct{})}
	result := make(chan error, 1)
	go func() {
		_, _, err := a.ask(ctx, program, "Count to a million.", 2000, begun)
		result <- err
	}()
	select {
	case <-begun.first:
	case err := <-result:
		return fmt.Errorf("the call ended before it was cancelled: %w", err)
	}
	answer, err := a.programs.CancelProgram(ctx, &pb.CancelProgramRequest{ProgramId: program})
	if err != nil {
		return err
	}
	log.Printf("%s: %d call cancelled; the stream ended with: %v", program, answer.CallsCancelled, <-result)
	if _, _, err = a.ask(ctx, program, "And now?", 1, io.Discard); err == nil {
		return errors.New("a cancelled program took a call")
	}
	log.Printf("another call is refused: %v", err)
	return nil
}

// begun says when the first text has come.
type begun struct {
	first chan struct{}
	seen  bool
}

func (b *begun) Write(text []byte) (int, error) {
	if !b.seen && len(text) > 0 {
		b.seen = true
		close(b.first)
	}
	return len(text), nil
}

func run() error {
	log.SetFlags(0)
	connection, err := dial(os.Getenv("AGENTSERVING_CONTROL_PLANE"))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	defer stop()
	if key := os.Getenv("OPENAI_API_KEY"); key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
	}
	a := &agent{
		model:    os.Getenv("MODEL"),
		programs: pb.NewProgramServiceClient(connection),
		calls:    pb.NewCallServiceClient(connection),
	}
	if err := a.research(ctx); err != nil {
		return err
	}
	return a.cancelled(ctx)
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
