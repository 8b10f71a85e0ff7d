"""One thin file a stage, and the console command."""
