"""A cluster's certificates: `renewal` decides and signs (pure), `issuing` reads and writes their Secrets."""
