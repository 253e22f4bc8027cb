"""The paper's experiments in virtual time: `runs` says what is run, `__main__` runs it, `report` and `plots` tell."""
