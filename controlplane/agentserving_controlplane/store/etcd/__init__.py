"""An etcd client for the Store port: what it needs, done right, and nothing else (client.py)."""
