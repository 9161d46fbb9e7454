"""What a config.json says, without JAX."""
