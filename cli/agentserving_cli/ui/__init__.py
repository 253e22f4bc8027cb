"""`agentserving ui`: a page on this machine that shows a cluster's programs, engines, policy and runs. Read-only.

`server` serves the static page in `page/` and asks the control plane for it; `data` turns values into its JSON (pure).
"""
