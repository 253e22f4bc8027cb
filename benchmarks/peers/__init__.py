"""This front beside others: one load, one set of engines, one run (`python -m benchmarks.peers`)."""
