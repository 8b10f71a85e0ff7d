"""Layer `stages` of the house; see the README."""
