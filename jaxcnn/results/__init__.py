"""What a finished run is worth, and what its network does."""
