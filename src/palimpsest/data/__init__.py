"""Data: one file per data set, real upstream schemas in, Edits out; world.py generates the offline world."""
