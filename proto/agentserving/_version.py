"""The one home of the version: both wheels (the product's and the engine plugin's) and every component read it."""

__version__ = "0.1.0"
