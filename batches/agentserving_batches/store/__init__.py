"""The durable state: `database` (one thread, one transaction at a time), its rows, and `contents`, the files."""
