"""Steps, optimisers, phases, checkpoints and the loop that joins them."""
