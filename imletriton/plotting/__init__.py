"""What people look at: sheets of pictures (grids.py) and charts (charts.py)."""
