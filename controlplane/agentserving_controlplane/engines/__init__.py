"""Attached engines, their streams, and the load balancer."""
