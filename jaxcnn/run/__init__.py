"""A run's folder: what is written there, whose it is, and how it is saved."""
