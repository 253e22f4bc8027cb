"""OpenTelemetry spans of programs, calls and their phases, sent to a collector over OTLP. Off by default.

`feed` takes what has ended from the leader's state, in a bounded queue; `spans` makes spans of it (pure); `otlp` sends
them. Nothing waits for a collector: what it does not take in time is dropped and counted.
"""
