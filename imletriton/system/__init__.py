"""The machine: devices and memory, processes that train together, and signals to stop."""
