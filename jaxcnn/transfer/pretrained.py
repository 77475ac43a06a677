"""A model's variables from arrays of others: matching theirs to ours, and reporting what does not fit.

Nothing is left out silently: an array that is missing, left over or of another shape is an error, unless the config
allows it.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np
from etils import epath
from rich.table import Table

from jaxcnn.errors import RunError, UserError
from jaxcnn.layers.conv import by
from jaxcnn.models.published import PUBLISHED
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.checkpoint import Checkpoints, unflatten
from jaxcnn.transfer import timm, torchvision
from jaxcnn.transfer.state_dicts import Tensors, digest, read_file
from jaxcnn.transfer.torchvision import Naming, published_name, their_name, to_ours

Path = tuple[str, ...]  # ("stage1_block1", "conv1", "kernel")


@dataclass(frozen=True)
class Pretrained:
    """Variables to begin a run with, and how they came about."""

    variables: Any  # {"params", "batch_stats"}, float32; None where a leaf stays as the model began it
    source: str
    sha256: str
    loaded: tuple[str, ...]  # our paths
    adapted: tuple[str, ...]  # of those, the ones of another shape in the source
    initialised: tuple[str, ...]  # that stay as the model began them
    skipped: tuple[str, ...]  # the source's names

    def facts(self) -> dict[str, Any]:
        """Facts for the run's config.json."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "num_loaded": len(self.loaded),
            "adapted": list(self.adapted),
            "initialised": list(self.initialised),
            "skipped": list(self.skipped),
        }

    def over(self, variables: Any) -> Any:
        """Copy of `variables` with the loaded arrays in their places."""
        return jax.tree.map(
            lambda mine, theirs: mine if theirs is None else jax.numpy.asarray(theirs, mine.dtype),
            variables,
            self.variables,
            is_leaf=lambda leaf: leaf is None,
        )

    def table(self) -> Table:
        """Table of what became of the arrays."""
        table = Table(title=f"weights of {self.source} (sha256 {self.sha256[:12]}…)", title_justify="left")
        table.add_column("")
        table.add_column("arrays", justify="right")
        table.add_column("which", overflow="fold")
        for what, names in (
            ("loaded", self.loaded),
            ("of those, adapted", self.adapted),
            ("initialised anew", self.initialised),
            ("skipped of theirs", self.skipped),
        ):
            shown = ", ".join(names[:4]) + (f", … {names[-1]}" if len(names) > 4 else "")
            table.add_row(what, f"{len(names):,}", shown)
        return table


def read(path: epath.Path) -> tuple[Tensors, Naming | None]:
    """A file's or a run's arrays; with the naming, where they are known to have our names."""
    if path.is_dir():
        return run_arrays(path)[0], OURS
    tensors = read_file(path)
    ours = all(name.startswith(("params/", "batch_stats/")) for name in tensors.arrays)
    return tensors, OURS if ours else None


def run_arrays(
    workdir: epath.Path, step: str = "best", *, weights: str | None = None
) -> tuple[Tensors, dict[str, Any]]:
    """The result of a run, as evaluated: `params/…` and `batch_stats/…`, in our layout; and its config, as JSON.

    Args:
      step: `best`, which is the last where no best is kept; `last`; or a number.
      weights: `raw`, or their `average` over steps; none: the average, where one is kept.

    Raises:
      UserError: there is no run, or no such checkpoint of it, or it keeps no average.
      DamagedError: the checkpoint is damaged.
    """
    saved = workdir_lib.read_config(workdir)
    config: dict[str, Any] = saved["config"]
    folder = workdir / "checkpoints"
    optimizer = config["optimizer"]
    averaged = optimizer.get("ema_decay") is not None or optimizer.get("lookahead_every_steps") is not None
    if weights == "average" and not averaged:
        raise UserError(f"{workdir} keeps no average of its weights (optimizer.ema_decay); take the raw ones")
    if not folder.exists():
        raise UserError(f"{workdir} has no checkpoint yet")
    checkpoints = Checkpoints(
        folder,
        keep_best=config["checkpoint"]["keep_best"],
        **workdir_lib.rank_by(saved),
        read_only=True,
    )
    try:
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"{workdir} has no checkpoint yet")
        named = {"best": checkpoints.best_step() or steps[-1], "last": steps[-1]} | {str(each): each for each in steps}
        if step not in named:
            known = ", ".join(map(str, steps))
            raise UserError(f"--step={step}: there are checkpoints of steps {known}; or best, last")
        number = named[step]
        arrays, _ = checkpoints.read(number)
    finally:
        checkpoints.close()
    prefix = "state/ema/" if averaged and weights != "raw" else "state/"
    chosen = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith((f"{prefix}params/", f"{prefix}batch_stats/"))
    }
    return Tensors(chosen, f"{workdir}, step {number}", digest(chosen)), config


OTHERWISE = "init_allow='(\"PATTERN\",)' for what may be missing, left over or of another shape"
OURS = Naming(())  # of a run's own arrays: paths as they are


def fitted(module: nn.Module, arrays: dict[str, np.ndarray], example: Any, source: str) -> dict[str, Any]:
    """The variables of a module, called with such an `example`, shapes and dtypes without the batch's axis.

    Raises RunError where the arrays are not all that it has, or not finite.
    """
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), example)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    init = by("xla", partial(module.init, train=True))  # as in training: with auxiliary heads; traced fastest
    drawn = jax.eval_shape(init, keys, inputs)
    like = {"params": drawn["params"], "batch_stats": drawn.get("batch_stats", {})}
    try:
        variables: dict[str, Any] = unflatten(arrays, like)
    except ValueError as error:
        raise RunError(f"{source} does not hold the weights of the model that config.json names: {error}") from None
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise RunError(f"{source}: {bad[0]} has values that are not finite; the weights are damaged")
    return variables


@dataclass
class _Fitting:
    """State of the matching: what is known so far of our leaves and of theirs."""

    loaded: dict[tuple[str, Path], np.ndarray] = field(default_factory=dict)
    adapted: list[str] = field(default_factory=list)
    initialised: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # one message each, the first of which is shown
    advice: dict[str, None] = field(default_factory=dict)  # what to set, each once
    used: set[str] = field(default_factory=set)
    fitting: int = 0


def fit(
    tensors: Tensors,
    known: Naming | None,
    variables: Any,
    *,
    model: str,
    channels: int,
    head: str = "keep",
    adapt: bool = False,
    allow: Sequence[str] = (),
) -> Pretrained:
    """Their arrays in the shape of ours.

    Args:
      tensors: what was read.
      known: the naming that they have; none: the one of torchvision's and timm's that fits best.
      variables: {"params", "batch_stats"} of the model, of which shapes are enough.
      model: its name in MODELS.
      channels: of the images.
      head: keep, or new: heads stay as the model began them.
      adapt: whether to sum or repeat over input channels, and to resize position embeddings.
      allow: patterns of our paths, or of their names, that may be missing, left over or of another shape.

    Raises:
      UserError: something does not fit.
      RunError: a weight is not finite.
    """
    leaves: dict[tuple[str, Path], Any] = {
        (collection, path): leaf
        for collection in ("params", "batch_stats")
        for path, leaf in flax.traverse_util.flatten_dict(variables.get(collection, {})).items()
    }
    arrays = tensors.arrays
    if known is None:
        arrays = {
            published_name(name.removeprefix("module.").removeprefix("_orig_mod.")): a for name, a in arrays.items()
        }
        arrays = {name: a for name, a in arrays.items() if not name.endswith("num_batches_tracked")}
    naming = known or _naming(model, leaves, arrays, tensors.source)
    allowed = lambda *names: any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in allow)
    done = _Fitting()
    for (collection, path), leaf in leaves.items():
        ours, theirs, shape = "/".join(path), _name(collection, path, naming), tuple(leaf.shape)
        done.used.add(theirs)
        array, advice = arrays.get(theirs), OTHERWISE
        if head == "new" and "head" in path:
            done.initialised.append(ours)
            continue
        if array is None:
            problem = f"there is no {theirs!r} for {ours}"
        elif array.dtype.kind not in "fV":  # V: bfloat16
            problem = f"{theirs!r} is no array of floats"
        else:
            converted = np.asarray(array if naming is OURS else to_ours(path, array, naming))
            resize = None if converted.shape == shape else _adaptation(path, converted.shape, shape, channels)
            if resize is not None and adapt:
                done.adapted.append(f"{ours} {_sizes(converted.shape)} -> {_sizes(shape)}")
                converted = resize(converted.astype(np.float32))
            if converted.shape == shape:
                done.loaded[collection, path] = np.ascontiguousarray(converted, np.float32)
                done.fitting += 1
                continue
            problem = f"{theirs!r} is {_sizes(converted.shape)} where {ours} is {_sizes(shape)}"
            if "head" in path:
                advice = "init_head=new for another number of classes"
            elif resize is not None:
                advice = "init_adapt=true for images of other channels or another size"
            elif path[0].startswith(("stem", "patch_embedding")):
                advice = "model.stem=imagenet, that of published weights"
        if allowed(ours, theirs):
            done.initialised.append(ours)
        else:
            done.wrong.append(problem)
            done.advice[advice] = None
    skipped = sorted(arrays.keys() - done.used)
    left = [name for name in skipped if not allowed(name)]
    if done.wrong or left:
        raise UserError(_misfit(tensors, arrays, model, len(leaves), done, left))
    bad = ["/".join(path) for (_, path), array in done.loaded.items() if not np.isfinite(array).all()]
    if bad:
        raise RunError(f"{tensors.source}: {bad[0]} has values that are not finite; the weights are damaged")
    if not done.loaded:
        raise UserError(f"{tensors.source}: nothing of it is used: init_allow={tuple(allow)} allows everything")
    filled: dict[str, Any] = {}
    for collection in ("params", "batch_stats"):
        loaded = {path: done.loaded.get((collection, path)) for where, path in leaves if where == collection}
        filled[collection] = flax.traverse_util.unflatten_dict(loaded)
    return Pretrained(
        variables=filled,
        source=tensors.source,
        sha256=tensors.sha256,
        loaded=tuple("/".join(path) for _, path in done.loaded),
        adapted=tuple(done.adapted),
        initialised=tuple(done.initialised),
        skipped=tuple(skipped),
    )


def _name(collection: str, path: Path, naming: Naming) -> str:
    return "/".join((collection, *path)) if naming is OURS else their_name(path, naming)


def _naming(model: str, leaves: Mapping[tuple[str, Path], Any], arrays: Mapping[str, Any], source: str) -> Naming:
    """The naming by which most arrays are found."""
    namings = [table[model] for table in (torchvision.NAMINGS, timm.NAMINGS) if model in table]
    if not namings:
        raise UserError(
            f"{source}: PyTorch's names for {model}'s weights are not known; init_from takes a run's folder for it, or "
            f"a file that `python -m jaxcnn.transfer export --to jaxcnn` wrote{_likely_model(arrays, model)}"
        )
    return max(namings, key=lambda naming: sum(their_name(path, naming) in arrays for _, path in leaves))


def _adaptation(
    path: Path, theirs: tuple[int, ...], ours: tuple[int, ...], channels: int
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Adaptation of an array of one shape to another, if there is one."""
    if len(ours) == len(theirs) == 4 and ours[2] == channels:
        same_but_channels = theirs[:2] == ours[:2] and theirs[3] == ours[3]
        return (lambda kernel: adapt_channels(kernel, channels)) if same_but_channels else None
    if path[-1] == "position_embedding" and len(theirs) == 3 and theirs[2] == ours[2]:
        square = all(math.isqrt(tokens - 1) ** 2 == tokens - 1 for tokens in (theirs[1], ours[1]))
        return (lambda positions: resize_positions(positions, ours[1])) if square else None
    return None


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A kernel [h, w, in, out] for images of another number of channels, as timm does it.

    For one, the sum; else repeated, and scaled so that a grey image gives what it gave.
    """
    given = kernel.shape[2]
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.tile(kernel, (1, 1, math.ceil(channels / given), 1))[:, :, :channels]
    return repeated * np.float32(given / channels)


def resize_positions(positions: np.ndarray, tokens: int) -> np.ndarray:
    """Position embeddings [1, 1 + n * n, features] for another square grid: bicubic, with antialiasing, as timm."""
    features, sides = positions.shape[-1], [math.isqrt(count - 1) for count in (positions.shape[1], tokens)]
    grid = positions[:, 1:].reshape(1, sides[0], sides[0], features)
    resized = np.asarray(jax.image.resize(grid, (1, sides[1], sides[1], features), "cubic", antialias=True))
    return np.concatenate([positions[:, :1], resized.reshape(1, -1, features)], axis=1)


def _misfit(
    tensors: Tensors, arrays: Mapping[str, Any], model: str, count: int, done: _Fitting, left: Sequence[str]
) -> str:
    """One line: whose they may be instead; or what is wrong first, how much of it there is, and what to set."""
    fits = f"{done.fitting:,} of {count:,} arrays of {model} fit"
    if instead := _likely_model(arrays, model):
        return f"{tensors.source} is of another model: {fits}{instead}"
    problems = [*done.wrong, *(f"{name!r} is not {model}'s" for name in left)]
    more = f" (and {len(problems) - 1:,} more like it)" if len(problems) > 1 else ""
    advice = {**done.advice, **({OTHERWISE: None} if left else {})}
    return f"{tensors.source}: {problems[0]}{more}; {fits}; set {', '.join(sorted(advice, key=OTHERWISE.__eq__))}"


def _likely_model(arrays: Mapping[str, Any], model: str) -> str:
    """Words for the model that the arrays may belong to: the one with as many learnable parameters for 1000 classes."""
    learnable = sum(
        math.prod(array.shape)
        for name, array in arrays.items()
        if not name.endswith(("running_mean", "running_var")) and not name.startswith("batch_stats/")
    )
    same = [name for name, each in PUBLISHED.items() if each.num_params == learnable and name != model]
    return f"; {learnable:,} parameters are what {' and '.join(same)} has: set model.name={same[0]}" if same else ""


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
