"""`agentserving tune`: searches for a better policy on half of a trace and judges it on the other half."""
