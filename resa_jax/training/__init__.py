"""A run, from its recipe to an exported encoder."""
