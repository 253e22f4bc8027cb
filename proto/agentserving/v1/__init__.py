"""Generated messages and stubs of agentserving.v1; `make proto` writes everything else in this folder."""
