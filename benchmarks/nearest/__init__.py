"""Nearest-neighbour search, compared with the libraries that a user could choose instead; a part of `make bench`."""
