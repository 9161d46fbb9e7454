"""Readers of rows: JSON, text, tables, saved data sets, the hub."""
