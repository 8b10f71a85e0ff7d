"""Layer `report` of the house; see the README."""
