"""A whole cluster as child processes of one supervisor: cluster.py starts, watches and ends them."""
