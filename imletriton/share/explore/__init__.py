"""The page of `imletriton explore`."""
