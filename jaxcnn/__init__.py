"""jaxcnn: train, ablate, understand and ship convolutional networks in JAX."""

import sys
from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]

if sys.argv[:1] == ["-m"] and " -m jaxcnn." in " ".join(sys.orig_argv):  # a command's imports are about to begin
    from jaxcnn.run import stopping

    stopping.while_importing()


def __getattr__(name: str) -> Any:
    if name == "load":  # imports JAX, which commands do only once their arguments are checked
        from jaxcnn.results.trained import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
