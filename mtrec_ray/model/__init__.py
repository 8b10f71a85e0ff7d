"""The network, from texts and columns to logits."""
