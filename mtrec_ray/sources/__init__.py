"""Files as their owners publish them, to a catalogue, a log and a project file. Knows no Ray.

`data/tables.py` opens files of any usual kind in DuckDB, `files.py` says which files are one table,
`columns.py` what their columns may be, `pairing.py` which table is whose catalogue, `kinds.py`
which logs are one; `guess.py` and `guess_items.py` make a scenario of a pair. `public.py`
recognises public data sets, each of which has a file. `draft.py` writes the Parquet files and the
project file.
"""
