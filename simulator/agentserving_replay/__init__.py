"""Programs in virtual time: recorded or generated ones, run under any policy by the production code.

`traces.trace` defines what a program is, `traces.file` reads files of programs, `workloads` generates them. `cluster`
runs them with the control plane's process table, engine registry and load balancer, and the simulator's engines;
`figures` summarises a run. `tuning` searches for a better policy.
"""
