"""The `agentserving` command, and the cluster that runs on one machine."""
