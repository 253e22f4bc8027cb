"""Engines: what is known of them, their streams, and the load balancer."""
