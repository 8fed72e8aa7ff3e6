"""Training backends. ray_train runs one trial as one Ray Train job around a TRL or transformers trainer."""
