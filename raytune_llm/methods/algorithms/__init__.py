"""The reinforcement learning algorithms of a policy: one file for each."""
