"""Joint training of a pretrained language model over several recommendation scenarios, on Ray."""
