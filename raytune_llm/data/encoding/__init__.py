"""Records encoded by a job's method: in several processes, kept for later jobs."""
