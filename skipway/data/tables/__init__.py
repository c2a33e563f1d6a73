"""Tabular data: column kinds, encoders, splits and batches of rows."""
