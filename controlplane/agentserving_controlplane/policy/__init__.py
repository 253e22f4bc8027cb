"""The policy in force and what the control plane computes for it."""
