"""Pools and training steps, compared with RS-IMLE's published loop; a part of `make bench`."""
