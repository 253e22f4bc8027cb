"""What a simulated engine answers, whatever API asks: conversations as prompts, tool calls, scripts, token by token."""
