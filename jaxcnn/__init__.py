"""jaxcnn: train, ablate, understand and ship convolutional networks in JAX."""

__version__ = "0.1.0"
