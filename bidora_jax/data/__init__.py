"""From a source to a batch. Knows no model."""
