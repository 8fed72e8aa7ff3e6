"""What a job's data are, and what in them would spoil the result."""
