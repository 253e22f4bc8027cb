"""Agents as users write them; only the HTTP address and one header tell them of agentserving."""
