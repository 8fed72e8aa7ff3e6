"""Sweeps: the space, Ray Tune's searchers and schedulers over it, the winner and the leaderboard."""
