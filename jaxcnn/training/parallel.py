"""Puts a pure step on devices: `jax.pmap`, or `jax.jit` over a mesh. The only file that knows how many there are.

In both modes a step sees this device's part of the global batch and names the axis over which it averages, so one
pure function serves both; a lone device under `jit` has no axis at all.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.errors import UserError, nearest
from jaxcnn.layers.conv import AUTO, by
from jaxcnn.layers.onednn.call import why_not
from jaxcnn.machine import private_cache

AXIS = "data"


@dataclass(frozen=True)
class Parallel:
    """How a run is spread: `mode` "jit" or "pmap", over these devices of all processes."""

    mode: str
    devices: tuple[jax.Device, ...]  # those of one process beside each other, and as many of each
    convolution: str = AUTO  # what computes convolutions on CPUs, of layers/conv.py

    @property
    def num_devices(self) -> int:
        """Of all processes."""
        return len(self.devices)

    @property
    def axis_name(self) -> str | None:
        """The axis a step averages over; None when it sees the whole batch."""
        return AXIS if self.mode == "pmap" or self.num_devices > 1 else None

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are CPUs."""
        return self.devices[0].platform == "cpu"

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    def _put(self, x: Any, spec: PartitionSpec) -> jax.Array:
        if jax.process_count() > 1 and self.mode == "pmap":  # which takes what lies on this process's devices
            own = [device for device in self.devices if device.process_index == jax.process_index()]
            return jax.device_put(x, NamedSharding(Mesh(np.array(own), (AXIS,)), spec))
        sharding = NamedSharding(self._mesh, spec)
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    def replicate(self, tree: Any) -> Any:
        """Host arrays -> the same on every device, in the form `compile`d functions take."""
        num_local = self.num_devices // jax.process_count()

        def one(x: Any) -> jax.Array:
            if jax.numpy.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key):
                return jax.random.wrap_key_data(one(jax.random.key_data(x)))
            if self.mode == "jit":
                return self._put(x, PartitionSpec())
            x = np.asarray(x)  # so that the copies are made on their devices, not all on the first
            return self._put(np.broadcast_to(x, (num_local, *x.shape)), PartitionSpec(AXIS))

        return jax.tree.map(one, tree)

    def unreplicate(self, tree: Any) -> Any:
        """Replicated -> host numpy arrays of their own memory. Waits for the devices."""
        local = jax.device_get(jax.tree.map(lambda x: x.addressable_shards[0].data, tree))
        drop = (lambda x: x[0]) if self.mode == "pmap" else (lambda x: x)
        return jax.tree.map(lambda x: np.array(drop(x)), local)

    def shard(self, tree: Any, axis: int = 0) -> Any:
        """Spreads this process's rows, along `axis`, of host arrays, over its devices."""
        if self.mode == "jit":
            if self.num_devices == 1:
                return tree  # the call itself transfers it, fastest
            return jax.tree.map(lambda x: self._put(x, PartitionSpec(*[None] * axis, AXIS)), tree)
        num_local = self.num_devices // jax.process_count()

        def split(x: np.ndarray) -> jax.Array:
            parts = np.reshape(x, (*x.shape[:axis], num_local, -1, *x.shape[axis + 1 :]))
            return self._put(np.moveaxis(parts, axis, 0), PartitionSpec(AXIS))

        return jax.tree.map(split, tree)

    def abstract(self, tree: Any, axis: int | None = None) -> Any:
        """Shapes as `replicate` (or, given an axis, `shard`) would return arrays of them, for lowering."""

        def one(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)
            shape = x.shape
            if self.mode == "pmap":
                spec = PartitionSpec(AXIS)
                if axis is not None:
                    shape = (*shape[:axis], shape[axis] // self.num_devices, *shape[axis + 1 :])
                shape = (self.num_devices, *shape)
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(self._mesh, spec))

        return jax.tree.map(one, tree)

    def compile(self, function: Callable, *, sharded: dict[int, int], donate: Sequence[int] = ()) -> Callable:
        """Compiles a function of positional arrays.

        Args:
          function: all its results are the same on every device.
          sharded: argument number -> the axis along which the argument is spread; others are replicated.
          donate: numbers of the arguments whose memory the results may take.
        """
        function = by(self.convolution, function, platform=self.devices[0].platform)
        if self.mode == "pmap":
            return jax.pmap(function, axis_name=AXIS, devices=self.devices, donate_argnums=tuple(donate))
        # XLA's CPU compiler drops barriers early (those of layers/norm.py, and those between
        # a value and what recomputes it, model.remat), unless told; pmap cannot tell it.
        options = {"xla_disable_hlo_passes": "cse_barrier_expander"} if self.on_cpu else None
        if self.num_devices == 1:
            return jax.jit(function, donate_argnums=tuple(donate), compiler_options=options)

        def over_mesh(*arguments):
            specs = tuple(
                PartitionSpec(*[None] * sharded[i], AXIS) if i in sharded else PartitionSpec()
                for i in range(len(arguments))
            )
            mapped = jax.shard_map(
                function, mesh=self._mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
            )
            return mapped(*arguments)

        return jax.jit(over_mesh, donate_argnums=tuple(donate), compiler_options=options)

    def local_rows(self, batch_size: int) -> slice:
        """The rows of the global batch that this process feeds; the batch divides over the devices, so over these."""
        size = batch_size // jax.process_count()
        return slice(jax.process_index() * size, (jax.process_index() + 1) * size)


def _some(devices: list[jax.Device], num_devices: int) -> list[jax.Device]:
    """The first ones, of each process as many."""
    share, rest = divmod(num_devices, jax.process_count())
    if rest:
        raise UserError(f"num_devices={num_devices} does not divide over {jax.process_count()} processes")
    seen: Counter[int] = Counter()
    chosen = []
    for device in devices:
        seen[device.process_index] += 1
        if seen[device.process_index] <= share:
            chosen.append(device)
    return chosen


def set_up(platform: str | None, *, compilation_cache: bool) -> None:
    """Settings of JAX that must come before its first use."""
    if platform == "cpu":  # so that no accelerator is taken; a missing one is make_parallel's to say
        jax.config.update("jax_platforms", platform)
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if compilation_cache and not folder and (folder := private_cache("compiled")):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if compilation_cache and folder:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    else:
        jax.config.update("jax_enable_compilation_cache", False)


def make_parallel(
    mode: str, *, platform: str | None = None, num_devices: int | None = None, convolution: str = AUTO
) -> Parallel:
    """Finds the devices. Raises UserError when they are not there: a run that names its platform gets that or none.

    `convolution`: what computes convolutions on CPUs; named, it must be there too.
    """
    try:
        devices = sorted(jax.devices(platform), key=lambda device: (device.process_index, device.id))
    except (RuntimeError, AssertionError) as error:  # JAX asserts, with no words, when no platform is left
        asked = f"platform={platform}" if platform else f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}"
        reason = f" ({' '.join(str(error).split())[:80]})" if str(error) else ""
        raise UserError(
            f"{asked} has no device here{reason}; for a GPU or TPU install the matching "
            "extra, e.g. pip install 'jaxcnn[cuda12]'"
        ) from None
    if num_devices is not None:
        if num_devices > len(devices):
            raise UserError(f"num_devices={num_devices}, but there are {len(devices)} {devices[0].platform} devices")
        devices = _some(devices, num_devices)
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        raise UserError(f"processes have {min(counts.values())} to {max(counts.values())} devices; give each as many")
    if mode not in ("jit", "pmap"):
        raise UserError(f"parallel={mode!r} is not known; {nearest(mode, ('jit', 'pmap'))}")
    missing = why_not() if convolution == "onednn" else None
    if missing is not None:
        raise UserError(f"model.convolution=onednn: {missing}")
    return Parallel(mode, tuple(devices), convolution)
