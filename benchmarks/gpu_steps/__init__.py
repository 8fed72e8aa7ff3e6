"""The steps of benchmarks/gpu_session.py, one file each; each is a process of its own (`python -m gpu_steps.NAME`).

Shared by them: step.py (where figures go), llama.py (random bases), paper.py (bounds by arithmetic), timing.py.
"""
