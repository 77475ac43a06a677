"""oneDNN's convolutions for CPUs: its C library by ctypes, called by XLA. Nothing is compiled on the user's machine."""
