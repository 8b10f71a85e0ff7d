"""Raw logs to samples, with Ray Data."""
