"""What `make bench` runs: imletriton measured beside what a user could pick instead. See README.md."""
