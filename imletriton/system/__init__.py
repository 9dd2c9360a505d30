"""What imletriton asks of the machine it runs on."""
