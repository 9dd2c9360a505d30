"""The folder of a run: its paths, its checkpoints, its log, and what its files hold as types."""
