"""What could stand on a user's list, and in which order. Knows no torch and no Ray."""
