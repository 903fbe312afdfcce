"""Timings and sizes: each script prints its claim as a ratio."""
