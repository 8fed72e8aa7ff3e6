"""Records, the files they come from, their tokens and their diagnosis."""
