"""What the engine's HTTP server adds to vLLM's own: an ASGI middleware, loaded by vLLM's `--middleware`.

A proxy in front of engines cannot know that a silent engine is healthy, nor end a stream in the caller's dialect, nor
afford to read bodies. The engine can. From the outside in: `middleware` is the ASGI shell, `answer` decides what goes
out and when, `request_body` reads the few fields of a request that matter here, `response_id` names the engine in the
ids of responses, `dialects` knows how each API spells errors. All but the shell are pure, and the simulator's front
uses them, too.

vLLM runs this in its API server, which is another process than the scheduler plugin's. A request is owned by the task
that uvicorn runs for it; the only other task is the one that sends a due comment, and the request's task awaits it.
"""
