"""Several processes as one run: what the environment says of them, how they begin and end, what they agree on."""
