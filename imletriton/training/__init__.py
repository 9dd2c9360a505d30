"""The whole course of a training: read trainer.py first."""
