"""Connections to the control plane: channels, TLS, finding the leader, errors."""
