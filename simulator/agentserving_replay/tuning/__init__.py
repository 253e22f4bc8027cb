"""`agentserving tune`: the search for a better policy and its judgement."""
