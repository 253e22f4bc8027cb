"""Engines in virtual time: the production policy over a cost model, without a clock. Pure."""
