"""`kubectl agentserving`: the commands of `agentserving` on a cluster in Kubernetes, and two more (`status`, `doctor`).

`kubectl` does all the talking (it knows every way to sign in), in one module (`kubectl`); what is made of its answers
is pure (`clusters`, `findings`).
"""
