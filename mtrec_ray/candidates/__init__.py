"""Few items of many for each user: numbers only. Knows no torch and no Ray."""
