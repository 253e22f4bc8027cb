"""Traces: what a program is (`trace`), the file format (`file`), and recording one from a running cluster."""
