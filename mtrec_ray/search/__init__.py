"""What a search tries and what came of it. Knows no Ray."""
