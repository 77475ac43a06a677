"""Exports a run's network for other runtimes: python -m jaxcnn.export --workdir DIR --to FORMAT OUT [--raw]

FORMAT: onnx; stablehlo, which jax.export.deserialize loads; safetensors, the weights; train_step, a run that goes on
anywhere; web, a folder with a page that runs the network in the browser; page, the same in one file; hf, a folder for
Hugging Face's hub, which timm may load. Without a run, ImageNet's weights: --init_from FILE --model NAME. What is
written was loaded by its own runtime and compared on test images. Exit codes: 0 written; 1 it differs from the run's
network, and was not written; 2 the command or the folder is wrong.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import flags
from etils import epath

from jaxcnn.command import HELP_FLAGS, flags_help, parse_flags, run_command, show_help
from jaxcnn.config import Config, from_dict
from jaxcnn.errors import UserError, nearest
from jaxcnn.files import check_writable, read_bytes, write_atomically
from jaxcnn.results import choosing
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.log import RunLog
from jaxcnn.terminal import PatientConsole, one_line

WEIGHTS = ("raw", "average")
NOT_FOR_ALL = ("weights", "raw", "images", "on", "runtime", "onnx", "license", "upload")  # flags of some formats
LEAST_IMAGES = 100  # fewer tell little of how many predictions are the same


def main(argv: list[str], start: float) -> int:
    """Parses, exports, compares, writes; returns the exit code."""
    del start
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # options may stand after the file
    _define_flags(values)
    if HELP_FLAGS & set(argv):
        show_help(f"{__doc__}\n{flags_help(values)}")
        return 0
    given = parse_flags(values, argv)
    _check(values, given)
    target, place = TARGETS[values.to], workdir_lib.resolve(given[0])
    _check_place(target, place, given[0], force=values.force)
    config = Config()
    if values.workdir:
        config = from_dict(workdir_lib.read_config(workdir_lib.resolve(values.workdir))["config"])

    from jaxcnn.training.parallel import set_up

    set_up(None, compilation_cache=config.compilation_cache)
    console = PatientConsole(soft_wrap=True)
    content, lines = target.export(values, RunLog(place, tensorboard=False).work)
    files = {place / name: each for name, each in content.items()} if isinstance(content, Mapping) else {place: content}
    try:
        if target.is_folder:
            place.mkdir(parents=True, exist_ok=True)
        for file, each in files.items():
            write_atomically(file, each)
    except OSError as error:
        raise UserError(f"{given[0]} cannot be written: {error.strerror}; choose another place") from None
    size = sum(map(len, files.values())) / 2**20
    console.print(f"{place}: {f'{len(files)} files, ' if target.is_folder else ''}{size:,.2f} MiB, {lines[0]}")
    for line in lines[1:]:
        console.print(line)
    if values.upload and isinstance(content, Mapping):
        from jaxcnn.export.hub import upload

        console.print(f"uploaded: {upload(content, values.upload)}")
    return 0


def _define_flags(values: flags.FlagValues) -> None:
    choosing.define_flags(values)
    flags.DEFINE_string("to", None, f"the format: {', '.join(TARGETS)}", flag_values=values)
    flags.DEFINE_string(
        "weights", None, "raw, or their average over steps; the average where one is kept", flag_values=values
    )
    flags.DEFINE_bool("raw", False, "the file takes images that are normalised already", flag_values=values)
    flags.DEFINE_integer("images", 128, "images it is compared on", LEAST_IMAGES, 10**6, flag_values=values)
    flags.DEFINE_string(
        "on", None, "those of this file, folder or data set, not the run's test images", flag_values=values
    )
    flags.DEFINE_string("data_dir", None, "where prepared sets lie, if not where they did", flag_values=values)
    flags.DEFINE_string(
        "runtime",
        None,
        "web, page: a folder with onnxruntime-web's files, instead of npm's registry",
        flag_values=values,
    )
    flags.DEFINE_string(
        "onnx",
        None,
        "web, page: an ONNX file that the page runs in the run's stead, as an int8 one",
        flag_values=values,
    )
    flags.DEFINE_string("license", "other", "hf: the weights' license, as the hub names it", flag_values=values)
    flags.DEFINE_string("upload", None, "hf: put the files into this repository, ORGANISATION/NAME", flag_values=values)
    flags.DEFINE_bool("force", False, "overwrite what is there", flag_values=values)


def _check(values: flags.FlagValues, given: list[str]) -> None:
    """Raises UserError for a command that cannot be meant; JAX is not imported."""
    choosing.check(values)
    if values.to not in TARGETS:
        named = f"--to={values.to} is not known" if values.to else "no format given; pass --to"
        raise UserError(f"{named}; {nearest(values.to or '', TARGETS)}")
    for name in NOT_FOR_ALL:
        if values[name].present and name not in TARGETS[values.to].takes:
            raise UserError(f"--{name} has no meaning with --to={values.to}; leave it out")
    if len(given) != 1:
        what = "folder" if TARGETS[values.to].is_folder else "file"
        raise UserError(f"--to={values.to} writes one {what}; give its name; got {' '.join(given) or 'none'}")
    if values.weights not in (None, *WEIGHTS):
        raise UserError(f"--weights={values.weights} is not known; {nearest(values.weights, WEIGHTS)}")
    if values.init_from is not None and not TARGETS[values.to].without_a_run:
        raise UserError(f"--to={values.to} is of a run; pass --workdir instead of --init_from")
    if values.upload and importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("--upload needs huggingface_hub: pip install 'jaxcnn[hub]'")
    if values.init_from is not None and values.weights:
        raise UserError(f"--weights={values.weights} is of a run, which may keep an average; leave it out")


def _check_place(target: "Target", place: epath.Path, given: str, *, force: bool) -> None:
    """Raises UserError where nothing can be written, or where something is."""
    try:
        check_writable(place, folder=target.is_folder)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{given!r} cannot be written: {reason}; choose another place") from None
    is_taken = place.exists() and not (target.is_folder and not any(place.iterdir()))
    if is_taken and not force:
        raise UserError(f"{given} exists; choose another name, or --force to overwrite what is there")


# ---- the formats: each (flags, told while data are read) -> (the content of a file, or of files by name; lines)


def _onnx(values: Any, progress: Any) -> tuple[bytes, list[str]]:
    network = _network(values)
    return _onnx_on(network, _images(values, network, progress))


def _onnx_on(network: Any, images: Any) -> tuple[bytes, list[str]]:
    from jaxcnn.export.onnx import run_onnx, to_onnx

    model = to_onnx(network.function, network.variables, network.example, facts=network.text())
    content = model.SerializeToString()
    lines = _compared(network, lambda inputs: run_onnx(content, inputs), "onnxruntime", images)
    return content, [f"{len(model.graph.node):,} nodes, opset {model.opset_import[0].version}, {lines[0]}", *lines[1:]]


def _stablehlo(values: Any, progress: Any) -> tuple[bytes, list[str]]:
    from jaxcnn.export.stablehlo import PLATFORMS, run_stablehlo, to_stablehlo

    network = _network(values)
    images = _images(values, network, progress)
    content = to_stablehlo(network.function, network.variables, network.example, network.facts)
    lines = _compared(network, lambda inputs: run_stablehlo(content, inputs), "jax.export", images)
    return content, [f"for {', '.join(PLATFORMS)}, {lines[0]}", *lines[1:]]


def _safetensors(values: Any, progress: Any) -> tuple[bytes, list[str]]:
    from jaxcnn.export.safetensors import run_safetensors, to_safetensors

    network = _network(values)
    images = _images(values, network, progress)
    content = to_safetensors(network)
    run = lambda inputs: run_safetensors(content, inputs, network)
    return content, _compared(network, run, "the weights, read back,", images)


def _train_step(values: Any, progress: Any) -> tuple[bytes, list[str]]:
    from jaxcnn.export.training import to_train_step

    step = values.step if values["step"].present else "last"
    return to_train_step(values.workdir, step=step, data_dir=values.data_dir, progress=progress)


def _web(values: Any, progress: Any) -> tuple[Any, list[str]]:
    from jaxcnn.export.runtime import runtime_files
    from jaxcnn.export.web import folder_of, page_of

    runtime = runtime_files(values.runtime, progress=progress)
    network = _network(values)
    images = _images(values, network, progress)
    model, lines = _given(values.onnx, network, images) if values.onnx else _onnx_on(network, images)
    make = folder_of if values.to == "web" else page_of
    return make(network, model, images, runtime), [f"with {lines[0]}", *lines[1:]]


def _given(path: str, network: Any, images: Any) -> tuple[bytes, list[str]]:
    """A file of others, and how it compares: it may be rounded, so no difference is too large. Raises UserError."""
    from jaxcnn.export.onnx import LIMIT, run_onnx
    from jaxcnn.export.parity import compare

    try:
        content = read_bytes(path, limit=LIMIT)
        logits = run_onnx(content, images.images)
        parity = compare(network.logits(images.images), logits, task=network.facts["task"], what=images.what)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"--onnx={path} does not run on the run's images ({one_line(error)[:150]}); give one that --to=onnx has "
            "written, or what was made of it"
        ) from None
    return content, [
        f"{path}, {len(content) / 2**20:,.2f} MiB",
        f"onnxruntime, of that file, against the run: {parity}",
    ]


def _hf(values: Any, progress: Any) -> tuple[Mapping[str, bytes], list[str]]:
    from jaxcnn.export.hub import architecture_of, run_hub, to_hub

    folder = workdir_lib.resolve(values.workdir)
    config = from_dict(workdir_lib.read_config(folder)["config"]).model
    network = _network(values)
    files = to_hub(network, config, workdir=folder, license_name=values.license)
    images = _images(values, network, progress)
    run = lambda inputs: run_hub(files, inputs, network, config)
    lines = _compared(network, run, "the weights, read back,", images)
    architecture = architecture_of(network, config)
    loads = f"timm loads it as {architecture}" if architecture else "timm has no such architecture: with our names"
    return files, [f"{loads}, {lines[0]}", *lines[1:]]


def _network(values: Any) -> Any:
    from jaxcnn.export import network

    if values.init_from is not None:
        return network.of_weights(values.init_from, values.model, raw=values.raw)
    return network.load(values.workdir, step=values.step, weights=values.weights, raw=values.raw)


def _images(values: Any, network: Any, progress: Any) -> Any:
    from jaxcnn.export import parity

    if values.on is not None:
        return parity.images_at(values.on, values.images, network=network, data_dir=values.data_dir, progress=progress)
    if values.init_from is not None:
        return parity.random_images(values.images, network.image_shape, "--on names others")
    return parity.images_of(values.workdir, values.images, data_dir=values.data_dir, progress=progress)


def _compared(network: Any, run: Callable, runtime: str, images: Any) -> list[str]:
    """Lines for people of what a file is, and of how it compares. Raises RunError where it differs."""
    from jaxcnn.export.parity import checked

    parity, facts = checked(network, run, images), network.facts
    return [
        f"{facts['model']} of {facts['source']}",
        f"input {facts['input']}, {facts['channels']}; output {facts['output']} of "
        f"{len(facts['class_names']):,} classes",
        f"{runtime} against the run: {parity}",
    ]


class Target(NamedTuple):
    """A format."""

    export: Callable[[Any, Any], tuple[bytes | Mapping[str, bytes], list[str]]]
    takes: tuple[str, ...] = ("weights", "raw", "images", "on")  # those of NOT_FOR_ALL that have a meaning for it
    is_folder: bool = False
    without_a_run: bool = True  # also of published weights


TARGETS = {
    "onnx": Target(_onnx),
    "stablehlo": Target(_stablehlo),
    "safetensors": Target(_safetensors),
    "train_step": Target(_train_step, (), without_a_run=False),
    "web": Target(_web, ("weights", "images", "on", "runtime", "onnx"), is_folder=True),
    "page": Target(_web, ("weights", "images", "on", "runtime", "onnx")),
    "hf": Target(_hf, ("weights", "images", "on", "license", "upload"), is_folder=True, without_a_run=False),
}


if __name__ == "__main__":
    run_command(main)
