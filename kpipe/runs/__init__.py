"""A run on disk: its directory and lock, state, logs, environment."""
