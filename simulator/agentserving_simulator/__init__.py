"""An engine without a model: the production policy and channel over a cost model, in real time."""
