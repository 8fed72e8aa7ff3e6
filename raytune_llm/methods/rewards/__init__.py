"""What a completion is worth to a policy that samples it: one file for each source of reward, and their mixture.

reward = clip(scale · Σ weight · source) − length_penalty · tokens − unended_penalty · [it was cut off]
"""
