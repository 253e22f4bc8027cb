"""agentserving: the Python client, and the contract that the components share."""
