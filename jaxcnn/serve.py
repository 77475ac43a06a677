"""Answers images over HTTP by a trained run: python -m jaxcnn.serve --workdir DIR [--port 8000]

Or by weights of ImageNet without a run: --init_from FILE --model NAME. POST /predict takes files (multipart) or JSON
with base64; / is a page to drop an image on; /health, /ready, /metrics, /openapi.json. Needs `jaxcnn[serve]`.
SIGTERM or Ctrl-C answers what waits, then ends with 0. Exit codes: 1 it failed, 2 wrong command or workdir.
"""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from absl import flags

from jaxcnn.command import HELP_FLAGS, flags_help, parse_flags, run_command, show_help
from jaxcnn.errors import RunError, UserError
from jaxcnn.results import choosing
from jaxcnn.terminal import PatientConsole, one_line

MOST_CONNECTIONS = 512  # beyond which uvicorn answers 503 itself


def main(argv: list[str], start: float) -> int:
    """Serves until a signal comes; returns the exit code."""
    del start
    values = flags.FlagValues()
    _define_flags(values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    parse_flags(values, argv, takes_arguments=False)
    if values.onnx is None:
        choosing.check(values)
    elif given := next((name for name in ("workdir", "init_from", "model", "step") if values[name].present), None):
        raise UserError(f"--onnx and --{given} are both networks; give one of them")
    uvicorn = _uvicorn()
    listening = _listening(values.host, values.port)
    try:
        return _serve(uvicorn, values, listening)
    finally:
        listening.close()


def _define_flags(values: flags.FlagValues) -> None:
    choosing.define_flags(values)
    flags.DEFINE_string("onnx", None, "instead of both: a file of jaxcnn.export or jaxcnn.quantize", flag_values=values)
    flags.DEFINE_string("host", "127.0.0.1", "whose connections: 0.0.0.0, all machines'", flag_values=values)
    flags.DEFINE_integer("port", 8000, "0: one that is free", 0, 65535, flag_values=values)
    flags.DEFINE_integer("batch_size", 8, "images on the device at most", 1, 1024, flag_values=values)
    flags.DEFINE_integer("requests", 64, "at once; one more is answered 429", 1, 10**5, flag_values=values)
    flags.DEFINE_integer("images", 16, "of a request", 1, 10**4, flag_values=values)
    flags.DEFINE_float("megabytes", 16.0, "of a request", 0.001, 1024.0, flag_values=values)
    flags.DEFINE_float("megapixels", 25.0, "of an image", 0.001, 178.0, flag_values=values)
    flags.DEFINE_float(
        "seconds", 30.0, "for a request to come, and again for its answer", 0.01, 3600.0, flag_values=values
    )
    flags.DEFINE_string("tta", None, "views averaged over, as predict has them; default the run's", flag_values=values)


def _uvicorn() -> Any:
    try:
        import fastapi
        import python_multipart
        import uvicorn
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}, which is not installed: pip install 'jaxcnn[serve]'") from None
    del fastapi, python_multipart
    return uvicorn


def _listening(host: str, port: int) -> socket.socket:
    """A socket that holds the port from before anything is loaded."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listening = socket.socket(family, kind, protocol)  # asyncio sends at once only where TCP is named
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host={host} --port={port} cannot be served on: {one_line(error)}") from None
    return listening


def _serve(uvicorn: Any, values: flags.FlagValues, listening: socket.socket) -> int:
    from jaxcnn.augment import VIEWS
    from jaxcnn.errors import nearest
    from jaxcnn.serving.app import Limits, make_app
    from jaxcnn.training.parallel import set_up

    if values.tta is not None and values.tta not in VIEWS:
        raise UserError(f"--tta={values.tta} is not known; {nearest(values.tta, VIEWS)}")
    set_up(None, compilation_cache=True)
    model = _open(values)
    if model.image_shape[2] not in (1, 3):
        raise UserError(f"the network wants images of {model.image_shape[2]} channels, which no file has")
    limits = Limits(
        num_bytes=int(values.megabytes * 1e6),
        num_pixels=int(values.megapixels * 1e6),
        num_images=values.images,
        num_requests=values.requests,
        seconds=values.seconds,
    )
    batcher, explains = _batcher(model, values, limits)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(model, batcher, limits, explains=explains),
            log_level="error",
            access_log=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=int(limits.seconds) + 1,
            server_header=False,
        )
    )
    server.capture_signals = lambda: _ending_by_signal(server)
    batcher.on_failure = lambda: setattr(server, "should_exit", True)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    PatientConsole().print(f"{model.source} on http://{shown}:{port}; /ready once it is compiled", soft_wrap=True)
    asyncio.run(server.serve(sockets=[listening]))
    if batcher.failure is not None:
        raise RunError(f"the network cannot be compiled: {one_line(batcher.failure)}")
    return 0


def _open(values: flags.FlagValues) -> Any:
    """The network, as results.trained.TrainedModel is one."""
    if values.onnx is None:
        return choosing.open_model(values)
    from jaxcnn.serving.onnx_file import open_onnx

    return open_onnx(values.onnx)


def _batcher(model: Any, values: flags.FlagValues, limits: Any) -> tuple[Any, bool]:
    """(the thread that owns the network, whether it explains)."""
    from jaxcnn.serving.app import EXPLANATION, PROBABILITIES
    from jaxcnn.serving.batching import Batcher, Compiled

    sizes = [1 << power for power in range(values.batch_size.bit_length()) if 1 << power < values.batch_size]
    calls = {PROBABILITIES: Compiled(model.probabilities_call(values.tta), [*sizes, values.batch_size])}
    try:
        calls[EXPLANATION] = Compiled(model.explain_call(), [1])
    except UserError:  # the network shows no map
        explains = False
    else:
        explains = True
    return Batcher(calls, model.image_shape, capacity=limits.num_requests * limits.num_images), explains


@contextmanager
def _ending_by_signal(server: Any) -> Iterator[None]:
    """A signal ends the server in its own time; a second one at once."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    yield


if __name__ == "__main__":
    run_command(main, less_memory="lower --batch_size")
