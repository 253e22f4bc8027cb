"""A cluster's certificates: which are due, and how they are signed. Pure; `issuing` reads and writes their Secrets."""
