"""Methods that make a model shallower."""
