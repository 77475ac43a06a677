"""Launches: python -m jaxcnn.launch local|slurm|tpu|k8s …, or ./launch.sh local|slurm|tpu|k8s …; each has --help.

Exit codes: 0 done, 1 failed, 2 wrong, 75 stopped and saved: the same command goes on.
"""

import importlib
import sys

from jaxcnn.errors import RunError, UserError, nearest
from jaxcnn.launch.arguments import help_of
from jaxcnn.launch.system import complain, tell

WHERE = ("local", "slurm", "tpu", "k8s")


def main(argv: list[str]) -> int:
    """Launches; returns the exit code."""
    where, *rest = argv[1:] or ["--help"]
    try:
        if where in ("--help", "-h", "help"):
            tell(str(__doc__).strip())
            return 0
        if where not in WHERE:
            raise UserError(f"unknown place {where[:80]!r}; {nearest(where, WHERE)}")
        place = importlib.import_module(f"jaxcnn.launch.{where}")
        if rest[:1] in (["--help"], ["-h"]):
            tell(f"{str(place.__doc__).strip()}\n\n{help_of(place.OPTIONS)}")
            return 0
        return int(place.launch(rest))
    except (UserError, RunError) as error:
        complain(error)
        return error.exit_code
    except OSError as error:
        complain(error)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
