"""An engine without a model, in real time: the production policy and channel over a cost model."""
