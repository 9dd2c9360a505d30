"""The run directory: its places, its checkpoints and its log."""
