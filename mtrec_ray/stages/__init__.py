"""The jobs, one file each; Ray at the edge."""
