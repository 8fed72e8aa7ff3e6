"""Training one trial (trial, ray_train) or many on one resident base (packed), with the same reports and outcomes."""
