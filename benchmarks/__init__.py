"""One script a question; results are written by the scripts only."""
