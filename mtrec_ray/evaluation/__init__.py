"""Numbers only: metrics, intervals, choices. Knows no torch and no Ray."""
