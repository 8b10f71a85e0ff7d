"""Files as their owners publish them, to a catalogue, a log and a project file. Knows no Ray.

`tables.py` opens files of any usual kind in DuckDB, `columns.py` says what their columns may be,
`pairing.py` which table is whose catalogue, `guess.py` makes a scenario of both; `public.py` knows
public data sets, with a file for each; `draft.py` writes the Parquet files and the project file.
"""
