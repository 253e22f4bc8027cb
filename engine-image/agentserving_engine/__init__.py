"""The scheduler plugin that runs inside vLLM's engine process.

From the outside in: `scheduler` overrides vLLM's hooks, `vllm_adapter` and `waiting_queue` are all that touches vLLM,
`session` does what an engine owes the control plane, `calls` knows which request belongs to which call, and `policy`
decides. The simulator runs everything from `session` inwards. `http` stands apart: it runs in vLLM's API server.

Two threads: the engine core's main thread owns all of it, except the channel's socket (`channel_server`), which belongs
to a daemon thread. They meet in the channel's deques and in the `Outbox`.
"""
