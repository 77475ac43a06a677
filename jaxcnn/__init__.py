"""jaxcnn: train, ablate, understand and ship convolutional networks in JAX."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # imports JAX, which commands do only once their arguments are checked
        from jaxcnn.trained import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
