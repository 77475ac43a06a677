"""Finished runs: their networks, what they are worth, what is wrong with them."""
