"""How good samples are, judged by pictures that training never saw: `python -m benchmarks.quality`."""
