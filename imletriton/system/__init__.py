"""The machine: its devices, several processes that train together, and requests to stop."""
