"""Weights of others: their names for our parameters, and their layout of the arrays."""
