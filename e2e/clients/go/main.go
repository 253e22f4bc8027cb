// An agent on OpenAI's library for Go, as shared.mjs describes: go run . [--sub-agent] PROMPT
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/shared"
)

// The weather of a city.
type tool func(city string) string

// Chat completions and tool calls until there are none.
func answer(prompt string, weather tool, options ...option.RequestOption) string {
	client := openai.NewClient(options...)
	parameters := openai.ChatCompletionNewParams{
		Model:    os.Getenv("OPENAI_MODEL"),
		Messages: []openai.ChatCompletionMessageParamUnion{openai.SystemMessage("Be brief."), openai.UserMessage(prompt)},
		Tools: []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{
			Name:        "get_weather",
			Description: openai.String("Tells the weather."),
			Parameters: shared.FunctionParameters{
				"type":       "object",
				"properties": map[string]any{"city": map[string]any{"type": "string"}},
				"required":   []string{"city"},
			},
		})},
	}
	for {
		completion, err := client.Chat.Completions.New(context.Background(), parameters)
		if err != nil {
			log.Fatal(err)
		}
		message := completion.Choices[0].Message
		if len(message.ToolCalls) == 0 {
			return message.Content
		}
		parameters.Messages = append(parameters.Messages, message.ToParam())
		for _, call := range message.ToolCalls {
			var arguments struct{ City string }
			if err := json.Unmarshal([]byte(call.Function.Arguments), &arguments); err != nil {
				log.Fatal(err)
			}
			result := openai.ToolMessage(weather(arguments.City), call.ID)
			parameters.Messages = append(parameters.Messages, result)
		}
	}
}

func main() {
	withSubAgent := flag.Bool("sub-agent", false, "the tool asks another agent, which is a program of its own")
	flag.Parse()
	tools := 0
	weather := func(string) string {
		tools++
		return "sunny"
	}
	helper := func(string) string {
		tools++
		return answer("say hello", weather,
			option.WithHeader("x-agentserving-program-id", "helper-"+rand.Text()),
			option.WithHeader("x-agentserving-program-name", "helper"))
	}
	asked := weather
	if *withSubAgent {
		asked = helper
	}
	text := answer(flag.Arg(0), asked)
	printed, err := json.Marshal(map[string]any{"tools": tools, "answer": text})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(printed))
}
