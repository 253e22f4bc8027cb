"""Suites share no fixtures: builders and helpers that several suites need are in tests/support."""
