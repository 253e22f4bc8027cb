"""Programs in virtual time: recorded or generated ones, run under any policy by the production code.

`trace` says what a program is, `trace_file` reads files of them, `workloads` draws them, `cluster` runs them (the
control plane's process table and load balancer, the simulator's engines), `figures` says what came of it.
"""
