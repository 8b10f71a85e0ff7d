"""What the tune job is made of."""
