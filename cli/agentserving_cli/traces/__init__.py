"""A run to look at: from GetTrace's values to spans on one time axis, a Chrome trace, and a timeline in the terminal.

Pure: `spans` computes what happened when, the others render it.
"""
