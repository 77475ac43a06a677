"""What one call of oneDNN does, made from plain data: the primitives of a convolution, and the memory between them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from jaxcnn.files import from_json, to_json
from jaxcnn.layers.conv_cpu import Window
from jaxcnn.layers.onednn import library as dnn
from jaxcnn.layers.onednn.library import Argument, Library, OneDNNError, Pointer, library

FORWARD, BY_IMAGES, BY_KERNEL = "forward", "by_images", "by_kernel"
# Multiply-adds from which a call is worth all threads; fewer are one thread's. Threads that make a kernel's gradient
# wait for each other in a loop, which takes 4 ms where something else has one's core.
_ALL_THREADS_FROM = {FORWARD: 4_000_000, BY_IMAGES: 4_000_000, BY_KERNEL: 32_000_000}
_SCRATCH = -1  # the last buffer of a call: kernels in another order, and oneDNN's own room
_ALIGNED = 64  # bytes


class Convolution(NamedTuple):
    """One convolution or one of its gradients: `which`, and the shapes [batch, height, width, channels] it works on."""

    which: str  # (images, kernel) -> result; (kernel, dy) -> dimages; (images, dy) -> dkernel
    images: tuple[int, ...]
    kernel: tuple[int, ...]  # [height, width, in / groups, out]
    window: Window

    @property
    def result(self) -> tuple[int, ...]:
        """Shape of the convolution's result."""
        sides = [
            (size + sum(pads) - (length - 1) * dilation - 1) // stride + 1
            for size, pads, length, dilation, stride in zip(
                self.images[1:3],
                self.window.padding,
                self.kernel,
                self.window.dilation,
                self.window.strides,
                strict=False,
            )
        ]
        return (self.images[0], *sides, self.kernel[3])

    @property
    def multiply_adds(self) -> int:
        """Products of two numbers that it sums, those with padding counted."""
        batch, high, wide, features = self.result
        return batch * high * wide * features * self.kernel[0] * self.kernel[1] * self.kernel[2]

    @property
    def threads(self) -> int:
        """How many compute it: one, or all of oneDNN's."""
        return library().threads if self.multiply_adds >= _ALL_THREADS_FROM[self.which] else 1

    def text(self) -> str:
        """All that a plan depends on, as a program carries it: another process makes the same plan from it."""
        return to_json([self.which, self.images, self.kernel, self.window, library().version, self.threads])


class _Slot(NamedTuple):
    """Where an array lies: in which buffer of the call, how far from its start, and its descriptor."""

    buffer: int
    offset: int
    descriptor: Pointer


class _Ready(NamedTuple):
    """A plan's memory objects, which one call at a time uses."""

    places: list[tuple[int, int, int]]  # (memory, buffer, offset)
    steps: list[tuple[Pointer, int, Any]]  # (primitive, number of arguments, arguments)


@dataclass
class Plan:
    """Primitives in their order. Any number of threads may run it at once."""

    text: str
    threads: int
    steps: list[tuple[Pointer, list[tuple[int, _Slot]]]] = field(default_factory=list)
    scratch: int = 0  # bytes
    implementation: str = ""
    _free: list[_Ready] = field(default_factory=list)

    def run(self, buffers: Sequence[int]) -> None:
        """Computes, from and into memory at these addresses: arguments, results, scratch. Raises OneDNNError."""
        here = library()
        try:
            ready = self._free.pop()
        except IndexError:
            ready = self._make_ready(here)
        here.set_threads(self.threads)
        place, execute = here.quick.dnnl_memory_set_data_handle, here.calls.dnnl_primitive_execute
        for memory, buffer, offset in ready.places:
            place(memory, buffers[buffer] + offset)
        for primitive, count, arguments in ready.steps:
            if status := execute(primitive, here.stream, count, arguments):
                here.check(status, f"{self.text} ({self.implementation})")
        self._free.append(ready)

    def _make_ready(self, here: Library) -> _Ready:
        places, steps = [], []
        for primitive, arguments in self.steps:
            array = (Argument * len(arguments))()
            for argument, (what, slot) in zip(array, arguments, strict=True):
                memory = here.made("memory_create", slot.descriptor, here.engine, Pointer())
                argument.what, argument.memory = what, memory.value
                places.append((memory.value or 0, slot.buffer, slot.offset))
            steps.append((primitive, len(arguments), array))
        return _Ready(places, steps)


class _Making:
    """A plan while it is made."""

    def __init__(self, plan: Plan) -> None:
        self.here, self.plan = library(), plan

    def room(self, descriptor: Pointer) -> _Slot:
        """Scratch memory for an array."""
        slot = _Slot(_SCRATCH, self.plan.scratch, descriptor)
        self.plan.scratch += -(-self.here.size(descriptor) // _ALIGNED) * _ALIGNED
        return slot

    def step(self, primitive: Pointer, *arguments: tuple[int, _Slot]) -> None:
        """Adds what a primitive's descriptor stands for."""
        own = self.here.asked(primitive, dnn.QUERY_SCRATCHPAD)
        if own and self.here.size(own):
            arguments = (*arguments, (dnn.SCRATCHPAD, self.room(own)))
        self.plan.steps.append((self.here.made("primitive_create", primitive), list(arguments)))

    def reorder(self, source: _Slot, target: _Slot) -> None:
        """Adds a copy from one order of the axes into another."""
        here = self.here
        ends = (source.descriptor, here.engine, target.descriptor, here.engine, here.attributes)
        self.step(here.made("reorder_primitive_desc_create", *ends), (dnn.FROM, source), (dnn.TO, target))

    def kernel(self, given: _Slot, liked: Pointer) -> _Slot:
        """Where a kernel lies in the order that a primitive likes: where it is given, when that is the same."""
        return given if self.here.calls.dnnl_memory_desc_equal(given.descriptor, liked) else self.room(liked)


def _make(convolution: Convolution, plan: Plan) -> None:
    making = _Making(plan)
    here, window = making.here, convolution.window
    images, result = (here.strided(_channels_second(s), (0, 2, 3, 1)) for s in (convolution.images, convolution.result))
    height, width, inputs, outputs = convolution.kernel
    shape: tuple[int, ...]
    order: tuple[int, ...]
    if window.groups == 1:
        shape, order = (outputs, inputs, height, width), (2, 3, 1, 0)
    else:
        shape, order = (window.groups, outputs // window.groups, inputs, height, width), (3, 4, 2, 0, 1)
    kernel, any_kernel = here.strided(shape, order), here.any_order(shape)
    moves = (
        dnn.Dims(*window.strides),
        dnn.Dims(*(step - 1 for step in window.dilation)),
        dnn.Dims(*(before for before, _ in window.padding)),
        dnn.Dims(*(after for _, after in window.padding)),
    )
    no_bias, ends = None, (here.attributes,)
    forward = here.made(
        "convolution_forward_primitive_desc_create", here.engine, dnn.FORWARD_TRAINING, dnn.DIRECT_CONVOLUTION,
        images, any_kernel, no_bias, result, *moves, *ends,
    )  # fmt: skip
    gradient = partial(here.made, f"convolution_backward_{'data' if convolution.which == BY_IMAGES else 'weights'}"
                       "_primitive_desc_create", here.engine, dnn.DIRECT_CONVOLUTION)  # fmt: skip
    if convolution.which == FORWARD:
        primitive, given = forward, _Slot(1, 0, kernel)
        used = making.kernel(given, here.asked(primitive, dnn.QUERY_WEIGHTS) or kernel)
        if used is not given:
            making.reorder(given, used)
        making.step(primitive, (dnn.SRC, _Slot(0, 0, images)), (dnn.WEIGHTS, used), (dnn.DST, _Slot(2, 0, result)))
    elif convolution.which == BY_IMAGES:
        primitive, given = gradient(images, any_kernel, result, *moves, forward, *ends), _Slot(0, 0, kernel)
        used = making.kernel(given, here.asked(primitive, dnn.QUERY_WEIGHTS) or kernel)
        if used is not given:
            making.reorder(given, used)
        arguments = ((dnn.WEIGHTS, used), (dnn.DIFF_DST, _Slot(1, 0, result)), (dnn.DIFF_SRC, _Slot(2, 0, images)))
        making.step(primitive, *arguments)
    else:
        primitive, given = gradient(images, any_kernel, no_bias, result, *moves, forward, *ends), _Slot(2, 0, kernel)
        used = making.kernel(given, here.asked(primitive, dnn.QUERY_DIFF_WEIGHTS) or kernel)
        arguments = ((dnn.SRC, _Slot(0, 0, images)), (dnn.DIFF_DST, _Slot(1, 0, result)), (dnn.DIFF_WEIGHTS, used))
        making.step(primitive, *arguments)
        if used is not given:
            making.reorder(used, given)
    plan.implementation = here.implementation(primitive)
    plan.scratch = max(plan.scratch, _ALIGNED)


def _channels_second(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[0], shape[3], *shape[1:3])


_plans: dict[str, Plan] = {}
_making = threading.Lock()


def plan_of(text: str) -> Plan:
    """The plan that a text of `Convolution.text` stands for, made when it is first asked for. Raises OneDNNError."""
    plan = _plans.get(text)
    if plan is None:
        with _making:
            if text not in _plans:
                _plans[text] = _planned(text)
            plan = _plans[text]
    return plan


def convolution_of(text: str) -> Convolution:
    """The inverse of `Convolution.text`."""
    which, images, kernel, (strides, padding, dilation, groups), *_ = from_json(text)
    (top, bottom), (left, right) = padding
    window = Window(tuple(strides), ((top, bottom), (left, right)), tuple(dilation), groups)
    return Convolution(which, tuple(images), tuple(kernel), window)


def _planned(text: str) -> Plan:
    *_, version, threads = from_json(text)
    here = library()
    if version != here.version:
        raise OneDNNError(f"a program was made for oneDNN {version}, and here is {here.version}: make it again")
    plan = Plan(text, threads)
    here.set_threads(threads)  # of this thread: a plan's scratch memory depends on it
    try:
        _make(convolution_of(text), plan)
    except OneDNNError as error:
        raise OneDNNError(f"{error}, for {text}") from None
    return plan
