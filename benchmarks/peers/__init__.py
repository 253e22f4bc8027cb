"""This front compared with others: one load, one set of engines, one run (`python -m benchmarks.peers`)."""
