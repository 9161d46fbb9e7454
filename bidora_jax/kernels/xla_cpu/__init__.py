"""Functions in the form that XLA's CPU backend computes fast."""
