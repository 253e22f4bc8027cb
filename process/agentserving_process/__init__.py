"""What the four processes share: logging, settings, probes, supervised tasks, the stream to the leader."""
