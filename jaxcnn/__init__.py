"""jaxcnn: train, ablate, understand and ship convolutional networks in JAX."""

import sys
from typing import Any

__version__ = "0.1.0"
__all__ = ["load", "of_weights"]

if sys.argv[:1] == ["-m"] and " -m jaxcnn." in " ".join(sys.orig_argv):  # a command's imports are about to begin
    from jaxcnn.run import stopping

    stopping.while_importing()


def __getattr__(name: str) -> Any:
    if name in __all__:  # imports JAX, which commands do only once their arguments are checked
        from jaxcnn.results import trained

        return getattr(trained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
