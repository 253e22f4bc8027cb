"""How many engines a cluster has, and which of them leave. Pure: state and time are arguments.

`decision` turns what programs need into a number, with hysteresis. `plan` turns the number into engines: which ones are
drained, and which may go. `scaler`, outside of this package, asks control planes, drains and remembers.
"""
