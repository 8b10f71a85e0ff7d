"""One training run on one rank. Knows no Ray."""
