"""The parts of an export: what each holds, how it is written, and how true it is."""
