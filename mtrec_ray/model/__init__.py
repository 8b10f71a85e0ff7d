"""Layer `model` of the house; see the README."""
