"""Prepared data: files, catalogues, rows in order, snapshots."""
