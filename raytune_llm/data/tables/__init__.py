"""Records and examples outside of Python's memory."""
