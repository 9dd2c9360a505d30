"""Benchmarks of imletriton and its alternatives. `make bench` runs the main ones; README.md describes all of them."""
