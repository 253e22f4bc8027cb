"""Traces of others as traces of ours: weka, otel, mooncake. Each reads its format and yields the lines of a trace."""
