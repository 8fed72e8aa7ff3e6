"""Decoding of many rows in one forward pass, each through its own adapter: key-value cache, masks, steps, greedy
answers. Knows nothing of requests or threads."""
