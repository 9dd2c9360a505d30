"""Sheets of pictures (grids.py, by PIL) and charts (charts.py, by matplotlib)."""
