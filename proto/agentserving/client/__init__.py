"""Typed gRPC clients and the values they return."""
