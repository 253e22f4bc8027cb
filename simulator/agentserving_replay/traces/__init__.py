"""Traces: the file format, recording one from a running cluster."""
