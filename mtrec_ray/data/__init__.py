"""Layer `data` of the house; see the README."""
