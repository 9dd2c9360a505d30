"""Decoders: style w to data points."""
