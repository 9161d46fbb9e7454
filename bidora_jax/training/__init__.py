"""Steps, optimisers, data, checkpoints and the loop that joins them."""
