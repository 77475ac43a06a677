"""The training of a model: the pure step, what it is fed, and the loop around it."""
