"""Layer `learning` of the house; see the README."""
