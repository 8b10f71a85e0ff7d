"""Raw logs to samples, in Ray tasks."""
