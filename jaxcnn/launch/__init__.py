"""Launching, here or on a cluster, by the standard library alone: a login node has nothing else installed."""
