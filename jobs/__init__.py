"""One thin file a stage."""
