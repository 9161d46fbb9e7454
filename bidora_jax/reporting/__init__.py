"""Pictures, a page and a table of what a run wrote down. Reads files and numbers only; no JAX."""
