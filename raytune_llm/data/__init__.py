"""Records, the files they come from, their doctor and their tokens."""
