"""Engines in virtual time. Pure."""
