"""The operator: one AgentServingCluster becomes etcd, control plane, gateway and engines; its status says how they are.

`spec` is the one source of what a user may write; `crd` makes the CustomResourceDefinition of it, `parsing` reads an
object by it. `manifests` says which objects a cluster needs, `status` what to tell about them; all four are pure.
`reconcile` compares and orders, `cluster` alone talks to the API server, `handlers` only registers with kopf.
"""
