"""Probes of `benchmarks.against`: each runs in the Python of either checkout and measures one thing round by round."""
