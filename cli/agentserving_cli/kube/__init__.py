"""`kubectl agentserving`: the commands of `agentserving` on a cluster in Kubernetes, and two more (`status`, `doctor`).

All access to Kubernetes goes through `kubectl`, which knows every way to sign in, in one module (`kubectl`). The
interpretation of its answers is pure (`clusters`, `findings`).
"""
