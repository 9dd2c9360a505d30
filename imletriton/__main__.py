"""`python -m imletriton` is the command line."""

from imletriton.cli import main

main()
