"""oneDNN's convolutions against plain numpy and lax, under every transformation, and where they cannot be had."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxcnn.errors import UserError
from jaxcnn.layers.conv import computed_by, conv, way_of
from jaxcnn.layers.conv_cpu import Window
from jaxcnn.layers.onednn import library as onednn
from jaxcnn.layers.onednn.call import why_not
from jaxcnn.layers.onednn.library import OneDNNError
from jaxcnn.layers.onednn.plan import BY_IMAGES, BY_KERNEL, FORWARD, Convolution, plan_of
from tests.commands import run_here

needs_onednn = pytest.mark.skipif(why_not() is not None, reason=f"no oneDNN here: {why_not()}")


def test_where_it_is_installed_it_loads():
    """Else all that follows would be skipped, and nobody would see it."""
    if onednn.PACKAGE in {each.name for each in onednn.metadata.distributions()}:
        assert why_not() is None


def random_window(rng):
    """Shapes of images and kernel, and a window, of which the result has at least one pixel."""
    groups = int(rng.choice([1, 1, 1, 2, 4]))
    inputs, outputs = (int(rng.choice([1, 2, 3, 5, 8, 16])) for _ in range(2))
    if rng.random() < 0.2:  # depthwise
        groups, inputs, outputs = int(rng.choice([3, 8, 16])), 1, int(rng.choice([1, 1, 2]))
    size, dilation = rng.integers(1, 6, 2), rng.integers(1, 3, 2)
    padding: Any = tuple((int(a), int(b)) for a, b in rng.integers(0, 3, (2, 2)))
    seen = [(s - 1) * d + 1 for s, d in zip(size, dilation, strict=True)]
    sides = [max(1, need - sum(p)) + int(rng.integers(0, 12)) for need, p in zip(seen, padding, strict=True)]
    strides: Any = tuple(map(int, rng.integers(1, 4, 2)))
    steps: Any = tuple(map(int, dilation))
    window = Window(strides, padding, steps, groups)
    return (
        (int(rng.integers(1, 8)), *sides, inputs * groups),
        (*map(int, size), inputs, outputs * groups),
        window,
    )


def in_numpy(images, kernel, dy, window):
    """Result, and gradients by images and kernel, a tap at a time in float64."""
    images, kernel, dy = (a.astype(np.float64) for a in (images, kernel, dy))
    padded = np.pad(images, ((0, 0), *window.padding, (0, 0)))
    groups = window.groups
    grouped = lambda a: a.reshape(*a.shape[:-1], groups, -1)
    y, dpadded, dkernel = 0.0, np.zeros_like(padded), np.zeros_like(kernel)
    for i, j in np.ndindex(kernel.shape[:2]):
        place = tuple(
            slice(n * d, n * d + (count - 1) * s + 1, s)
            for n, d, s, count in zip((i, j), window.dilation, window.strides, dy.shape[1:3], strict=True)
        )
        tap, weights = grouped(padded[:, *place]), grouped(kernel[i, j])  # weights: [in, groups, out]
        y = y + np.einsum("bhwgi,igo->bhwgo", tap, weights).reshape(dy.shape)
        dpadded[:, *place] += np.einsum("bhwgo,igo->bhwgi", grouped(dy), weights).reshape(padded[:, *place].shape)
        dkernel[i, j] = np.einsum("bhwgi,bhwgo->igo", tap, grouped(dy)).reshape(dkernel.shape[2:])
    (top, _), (left, _) = window.padding
    return y, dpadded[:, top : top + images.shape[1], left : left + images.shape[2]], dkernel


def by_plan(which, images, kernel, window, first, second, shape):
    """What a plan computes, without XLA."""
    plan = plan_of(Convolution(which, images.shape, kernel.shape, window).text())
    result, scratch = np.full(shape, np.nan, np.float32), np.zeros(plan.scratch + 64, np.uint8)
    plan.run([*(a.ctypes.data for a in (first, second, result)), -(-scratch.ctypes.data // 64) * 64])
    return result


def close(found, wanted, scale):
    assert np.abs(found - wanted).max() <= 3e-6 * scale, (np.abs(found - wanted).max(), scale)


@needs_onednn
@pytest.mark.parametrize("seed", range(4))
def test_two_hundred_convolutions_and_their_gradients(seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        image_shape, kernel_shape, window = random_window(rng)
        images, kernel = (rng.standard_normal(s, np.float32) for s in (image_shape, kernel_shape))
        dy = rng.standard_normal(Convolution(FORWARD, image_shape, kernel_shape, window).result, np.float32)
        y, dimages, dkernel = in_numpy(images, kernel, dy, window)
        found = partial(by_plan, images=images, kernel=kernel, window=window)
        terms = np.prod(kernel_shape[:3])
        close(found(FORWARD, first=images, second=kernel, shape=y.shape), y, terms**0.5 * 4)
        close(found(BY_IMAGES, first=kernel, second=dy, shape=images.shape), dimages, terms**0.5 * 4)
        close(found(BY_KERNEL, first=images, second=dy, shape=kernel.shape), dkernel, (dy.size + 1) ** 0.5 * 4)


def network(weights, x):
    for kernel in weights:
        x = jnp.tanh(conv(x, kernel, strides=1, padding=1))
    return jnp.sum(x * x)


def some():
    rng = np.random.default_rng(0)
    shapes = ((3, 3, 3, 16), (3, 3, 16, 8), (3, 3, 8, 8))
    weights = [jnp.asarray(rng.standard_normal(s, np.float32) * 0.1) for s in shapes]
    return weights, jnp.asarray(rng.standard_normal((16, 10, 9, 3), np.float32))


def by(way, function):
    def computed(*arguments):
        with computed_by(way):
            return function(*arguments)

    return computed


def relative(found, wanted):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in leaves)


def descended(f):
    """The weights after three steps of gradient descent in one program."""

    def step(w, x):
        return jax.tree.map(lambda a, g: a - 1e-4 * g, w, jax.grad(f)(w, x)), None

    return jax.jit(lambda w, x: lax.scan(lambda w, _: step(w, x), w, length=3)[0])


def of_a_gradient(f):
    """The gradient of the sum of a gradient's squares."""
    squares = lambda w, x: sum(jnp.sum(g * g) for g in jax.tree.leaves(jax.grad(f, argnums=(0, 1))(w, x)))
    return jax.jit(jax.grad(squares, argnums=(0, 1)))


def twice(w, x):
    return [jnp.stack([a, 2 * a]) for a in w], jnp.stack([x, -x])


TRANSFORMED: dict[str, Any] = {
    "jit": lambda f: jax.jit(jax.grad(f, argnums=(0, 1))),
    "remat": lambda f: jax.jit(jax.grad(jax.checkpoint(f), argnums=(0, 1))),
    "scan": descended,
    "vmap over images": lambda f: jax.jit(
        lambda w, x: jax.vmap(jax.grad(f), (None, 0))(w, x.reshape(4, 4, *x.shape[1:]))
    ),
    "vmap over both": lambda f: jax.jit(lambda w, x: jax.vmap(jax.grad(f))(*twice(w, x))),
    "pmap": lambda f: (
        lambda w, x: jax.pmap(lambda w, x: lax.psum(jax.grad(f)(w, x), "d"), axis_name="d", in_axes=(None, 0))(
            w, x.reshape(8, 2, *x.shape[1:])
        )
    ),
    "shard_map": lambda f: over_mesh(lambda w, x: lax.psum(jax.grad(f)(w, x), "d"), check_vma=False),
    "shard_map, checked": lambda f: over_mesh(jax.grad(f), check_vma=True),
    "of a gradient": of_a_gradient,
}


def over_mesh(function, *, check_vma):
    mesh = Mesh(np.array(jax.devices()), ("d",))
    specs = (PartitionSpec(), PartitionSpec("d"))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check_vma))


@needs_onednn
@pytest.mark.parametrize("name", TRANSFORMED)
def test_gradients_under_transformations(name):
    weights, x = some()
    transform = TRANSFORMED[name]
    assert relative(transform(by("onednn", network))(weights, x), transform(by("xla", network))(weights, x)) < 1e-5


@needs_onednn
def test_same_bits_in_every_call_and_every_thread():
    weights, x = some()
    gradients = jax.jit(jax.grad(by("onednn", network)))
    digest = lambda: hashlib.sha256(b"".join(np.asarray(g).tobytes() for g in gradients(weights, x))).hexdigest()
    wanted = digest()
    different: list[str] = []
    assert {digest() for _ in range(30)} == {wanted}

    def call():
        different.extend(found for found in (digest() for _ in range(10)) if found != wanted)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not different


@needs_onednn
def test_auto_chooses_by_shape():
    def way(images, kernel, padding=1, groups=1):
        window = Window((1, 1), ((padding, padding),) * 2, (1, 1), groups)
        return way_of(Convolution(FORWARD, images, kernel, window))

    assert way((128, 32, 32, 16), (3, 3, 16, 16)) == "onednn"
    assert way((1, 8, 8, 16), (3, 3, 16, 16)) == "products"  # small
    assert way((32, 56, 56, 64), (1, 1, 64, 64), 0) == "onednn"
    assert way((8, 14, 14, 64), (1, 1, 64, 64), 0) == "products"  # one small matrix product
    assert way((8, 16, 16, 256), (3, 3, 256, 256)) == "products"  # Winograd
    assert way((64, 4, 4, 32), (3, 3, 32, 64)) == "products"  # Winograd, small
    assert way((128, 16, 16, 32), (3, 3, 32, 32)) == "onednn"
    assert way((8, 56, 56, 144), (3, 3, 1, 144), groups=144) == "onednn"
    with computed_by("xla"):
        assert way((128, 32, 32, 16), (3, 3, 16, 16)) == "xla"
    with computed_by("onednn"):
        assert way((0, 32, 32, 16), (3, 3, 16, 16)) == "xla"  # an empty batch
        assert conv(jnp.ones((0, 8, 8, 3)), jnp.ones((3, 3, 3, 4)), padding=1).shape == (0, 8, 8, 4)


def test_auto_without_the_library(monkeypatch):
    from jaxcnn.layers import conv as module

    monkeypatch.setattr(module, "why_not", lambda: OneDNNError("not here"))
    window = Window((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    assert way_of(Convolution(FORWARD, (128, 32, 32, 16), (3, 3, 16, 16), window)) == "products"
    assert module.words("auto") == "matrix products"


@needs_onednn
def test_sixteen_bits_are_computed_in_thirty_two():
    weights, x = some()
    half = jax.jit(by("onednn", conv))(x.astype(jnp.bfloat16), weights[0].astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    rounded = (a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, weights[0]))
    assert jnp.array_equal(half, jax.jit(by("onednn", conv))(*rounded).astype(jnp.bfloat16))


@needs_onednn
def test_an_export_as_xla_has_no_foreign_function():
    weights, x = some()
    assert "jaxcnn.onednn" not in jax.export.export(jax.jit(by("xla", network)))(weights, x).mlir_module()
    with pytest.raises(ValueError, match=r"jaxcnn\.onednn"):  # JAX lets no such program out unasked
        jax.export.export(jax.jit(by("onednn", network)))(weights, x)


@needs_onednn
def test_flops_of_foreign_functions_are_counted():
    from jaxcnn.layers.onednn.call import flops

    weights, x = some()
    compiled = jax.jit(by("onednn", network)).lower(weights, x).compile()
    pixels = 16 * 10 * 9
    assert flops(compiled.as_text() or "") == 2 * pixels * 9 * (3 * 16 + 16 * 8 + 8 * 8)


CHILD = """
import sys, numpy as np, jax, jax.numpy as jnp
from tests.test_onednn import by, network, some
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if "cache_hits" in name else None)
gradients = jax.jit(jax.grad(by("onednn", network)))(*some())
print(len(hits), sum(float(jnp.sum(jnp.abs(g))) for g in gradients))
"""


def child(*arguments, code=CHILD, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, **environment},
        timeout=120, cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))), check=False,
    )  # fmt: skip


@needs_onednn
def test_a_program_from_the_cache_makes_its_plans_again(tmp_path):
    first, second = (child(str(tmp_path)) for _ in range(2))
    (hits_before, before), (hits, after) = first.stdout.split(), second.stdout.split()
    assert before == after, (first.stderr, second.stderr)
    assert int(hits) > int(hits_before)


@needs_onednn
@pytest.mark.parametrize("given", ["0", "nonsense", "1", "4,2"])
def test_any_omp_num_threads(given):
    code = "from jaxcnn.layers.onednn.library import library; print(library().threads)"
    done = child(code=code, OMP_NUM_THREADS=given)
    cores = len(os.sched_getaffinity(0))
    assert 1 <= int(done.stdout) <= (1 if given == "1" else cores), done.stderr


@needs_onednn
def test_another_version_and_a_library_that_does_not_load_are_said(monkeypatch, tmp_path):
    fresh = onednn.library.__wrapped__
    monkeypatch.setattr(onednn, "VERSION", (3, 9))
    with pytest.raises(OneDNNError, match=r"oneDNN 3\.2 is installed, and 3\.9 is needed: pip install"):
        fresh()
    broken = tmp_path / "libdnnl.so.3"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(onednn, "_path", lambda: broken)
    with pytest.raises(OneDNNError, match=r"does not load: .*libdnnl"):
        fresh()
    monkeypatch.setattr(onednn, "_processor_flags", lambda: {"sse2"})
    with pytest.raises(OneDNNError, match="no AVX2"):
        fresh()
    monkeypatch.setattr(onednn.platform, "system", lambda: "Darwin")
    with pytest.raises(OneDNNError, match="Linux on x86-64 alone"):
        fresh()


def test_without_the_package_the_line_says_how_to_get_it(monkeypatch):
    def no_files(name):
        raise onednn.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(onednn.metadata, "files", no_files)
    with pytest.raises(OneDNNError, match=r"would be faster with oneDNN: pip install 'jaxcnn\[onednn\]'"):
        onednn._path()


@needs_onednn
def test_a_call_that_fails_ends_the_program_with_its_shapes(monkeypatch):
    from jaxcnn.layers.onednn import plan

    weights, x = some()
    function = jax.jit(by("onednn", partial(conv, padding=1)))
    function(x, weights[0]).block_until_ready()
    monkeypatch.setattr(plan.Plan, "run", refuse)
    with pytest.raises(Exception, match=r"oneDNN 3.*16, ?10, ?9, ?3.*out of memory"):
        function(x, weights[0]).block_until_ready()


@needs_onednn
def test_ctrl_c_in_a_call_is_not_lost(monkeypatch):
    from jaxcnn.layers.onednn import plan

    def interrupted(self, buffers):
        raise KeyboardInterrupt

    weights, x = some()
    function = jax.jit(by("onednn", partial(conv, padding=1)))
    monkeypatch.setattr(plan.Plan, "run", interrupted)
    with pytest.raises(Exception, match=r"KeyboardInterrupt"):
        function(x, weights[0]).block_until_ready()


def refuse(self, buffers):
    onednn.library().check(1, self.text)


@needs_onednn
def test_a_convolution_that_cannot_be_is_refused_with_its_shapes():
    window = Window((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    with pytest.raises(OneDNNError, match=r"invalid arguments.*\[5, 5, 1, 1\]"):
        plan_of(Convolution(FORWARD, (1, 3, 3, 1), (5, 5, 1, 1), window).text())


@needs_onednn
def test_after_a_fork_a_call_says_so():
    code = """
import os, jax, warnings
from tests.test_onednn import by, conv, some
warnings.simplefilter("ignore")
weights, x = some()
from jaxcnn.layers.onednn import call
from jaxcnn.layers.onednn.library import OneDNNError
jax.jit(by("onednn", conv))(x, weights[0]).block_until_ready()
if os.fork() == 0:
    try:
        call._check_process()
    except OneDNNError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""
    assert "before this process was forked" in child(code=code).stdout


def test_asked_for_and_not_there_is_a_users_error(monkeypatch):
    from jaxcnn.training import parallel

    monkeypatch.setattr(parallel, "why_not", lambda: OneDNNError("no such library"))
    with pytest.raises(UserError, match=r"model\.convolution=onednn: no such library"):
        parallel.make_parallel("jit", convolution="onednn")


def test_a_batch_norms_gradient_is_computed_once_on_cpus():
    """Its barrier is still there after XLA's passes: else DenseNet's gradients would be computed 30 times over."""
    from jaxcnn.layers.norm import BatchNorm
    from jaxcnn.training.parallel import make_parallel

    norm, x = BatchNorm(use_running_average=False), jnp.ones((4, 6, 6, 3))
    variables = norm.init(jax.random.key(0), x)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(norm.apply(variables, x, mutable=["batch_stats"])[0] ** 3))(x)

    compiled = make_parallel("jit", num_devices=1).compile(gradient, sharded={})
    assert "opt-barrier(" in compiled.lower(x).compile().as_text()  # type: ignore[attr-defined]


@needs_onednn
def test_a_run_says_what_computes_its_convolutions_and_goes_on_with_another(tmp_path):
    """config.json, the first lines, and a resumed run's."""
    folder = tmp_path / "run"
    options = [
        "--config=experiments/digits.py",
        "--config.num_epochs=1",
        "--config.tensorboard=false",
        f"--workdir={folder}",
    ]
    code, output, errors = run_here(*options, "--config.model.convolution=products")
    assert code == 0, errors
    assert "convolutions by matrix products\n" in output
    assert json.loads((folder / "config.json").read_text())["convolutions"] == "matrix products"
    (folder / "summary.json").unlink()
    code, output, errors = run_here(*options, "--config.model.convolution=onednn")
    assert code == 0, errors
    assert "convolutions by oneDNN 3.2.0 on" in output
    assert "were computed by matrix products: this run goes on equal up to rounding" in " ".join(output.split())
