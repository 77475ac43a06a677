"""Prepares a TFDS set of images or texts as ArrayRecord: TFDS's builders, downloads.py, without_tensorflow.py.

Readers see a set once it is whole: TFDS writes into a folder `incomplete.*` beside the set's and renames it. What a
killed preparation has left is removed by the next, except for its downloads, which go on where they stopped.
"""

import contextlib
import errno
import inspect
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxcnn.data.downloads import Downloads, Progress
from jaxcnn.data.records import NotPreparedError
from jaxcnn.data.tfds import allow_open_files, image_and_label, pair_of, set_folder, tfds_directory
from jaxcnn.data.tfds_description import DESCRIPTION_LIMIT
from jaxcnn.data.tfrecord import convert
from jaxcnn.data.without_tensorflow import NeedsTensorFlowError, names_missing, without_tensorflow
from jaxcnn.errors import RunError, UserError, nearest
from jaxcnn.files import locked, read_json
from jaxcnn.terminal import short_line

NUM_BUCKETS = 1000  # files that TFDS sorts a split with that is larger than 1 GB, all open at once


def prepare(
    name: str, *, data_dir: str | None = None, archives: Sequence[Path] = (), progress: Progress = lambda *_: None
) -> Path:
    """The folder of a set that is ready to read: downloaded and prepared, converted, or found as it is.

    `name` is tfds:NAME[/CONFIG][:VERSION] or the same without `tfds:`. `archives` are files the user has downloaded by
    hand: what TFDS has registered is known by its content, the rest goes where TFDS looks for such files. A set that is
    there needs no network; one that is there as TFRecord is converted.
    """
    full_name = name if name.startswith("tfds:") else f"tfds:{name}"
    rest = full_name.removeprefix("tfds:")
    directory = tfds_directory(data_dir)
    try:
        folder = set_folder(full_name, rest, data_dir)
    except NotPreparedError:
        folder = None
    if folder is not None and "array_record" in _formats(full_name, folder):
        progress(f"{full_name} is prepared already, in {folder}", 0, 0)
        return folder
    try:
        downloads_folder = directory / "downloads"
        downloads_folder.mkdir(parents=True, exist_ok=True)
        with _alone(full_name, downloads_folder / f"{re.split('[/:]', rest)[0]}.lock"):
            if folder is not None:
                convert(folder, progress=progress)
            else:
                folder = _download_and_write(full_name, rest, directory, downloads_folder, archives, progress)
    except Exception as error:
        raise _explained(full_name, rest, directory, error) from error
    progress(f"{full_name} is prepared, in {folder}", 0, 0)
    return folder


def _formats(full_name: str, folder: Path) -> set[str]:
    """Formats in which a folder stores a set. UserError when it can be neither read nor converted."""
    try:
        info = read_json(folder / "dataset_info.json", limit=DESCRIPTION_LIMIT)
        formats = {info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", ())}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise RunError(
            f"{full_name}: {folder / 'dataset_info.json'} is damaged; remove {folder} and run this command again"
        ) from error
    if not formats & {"array_record", "tfrecord"}:
        stored = ", ".join(sorted(map(str, formats)))[:200]
        raise UserError(
            f"{full_name} in {folder} is stored as {stored}, which is not read here; move it away and run this command "
            "again"
        )
    return formats


def _download_and_write(
    full_name: str,
    rest: str,
    directory: Path,
    downloads_folder: Path,
    archives: Sequence[Path],
    progress: Progress,
) -> Path:
    builder = _builder(full_name, rest, directory)
    _check_learnable(full_name, builder.info)
    folder = Path(builder.data_dir)
    if folder.exists():  # another process has just prepared it
        return folder
    for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):
        shutil.rmtree(leftover)
    downloads = Downloads(
        builder.name,
        folder=downloads_folder,
        url_infos=builder.url_infos or {},
        instructions=builder.MANUAL_DOWNLOAD_INSTRUCTIONS,
        archives=archives,
        progress=progress,
    )
    try:
        _write(builder, downloads, progress)
    except (AssertionError, FileNotFoundError) as error:  # how builders say that files are missing
        if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise UserError(f"{downloads.by_hand()} ({short_line(error)})") from error
        raise
    downloads.clear_extracted()
    return folder


def _check_learnable(full_name: str, info: Any) -> None:
    """Raises UserError for a set that has neither images nor texts with class labels, before it is downloaded."""
    try:
        pair_of(full_name, info, "text")
    except UserError:
        try:
            image_and_label(full_name, info)
        except UserError as error:
            raise UserError(str(error).replace("has no image", "has no image and no text", 1)) from None


def _builder(full_name: str, rest: str, directory: Path) -> Any:
    """TFDS's builder of a set. UserError when TFDS has no such set, config or version."""
    import tensorflow_datasets as tfds

    rest, _, version = rest.partition(":")
    name, _, config = rest.partition("/")
    with without_tensorflow():
        import tensorflow_datasets.text  # registers its sets

        names = tfds.list_builders(with_community_datasets=False)
        if name not in names:
            raise UserError(f"{full_name} is no data set of TFDS: {nearest(name, names)}")
        builder_class: Any = tfds.builder_cls(name)
        configs = list(builder_class.builder_configs)
        if config and config not in configs:
            has = f"has the configs {nearest(config, configs)}" if configs else "has no configs"
            raise UserError(f"{full_name}: {name} {has}")
        module: Any = inspect.getmodule(builder_class)
        missing = names_missing(inspect.getsource(module))
        if missing or issubclass(builder_class, tfds.core.BeamBasedBuilder):
            raise NeedsTensorFlowError(", ".join(missing) or "Apache Beam")
        try:
            return builder_class(data_dir=str(directory), config=config or None, version=version or None)
        except (AssertionError, ValueError) as error:  # of a version
            raise UserError(f"{full_name}: {short_line(error)}") from error


def _write(builder: Any, downloads: Downloads, progress: Progress) -> None:
    import tensorflow_datasets as tfds

    allow_open_files(NUM_BUCKETS)
    builder._make_download_manager = lambda **_: downloads
    builder._log_download_bytes = builder._log_download_done = lambda: None  # would print to stdout
    with without_tensorflow(), _shown_by(progress):
        builder.download_and_prepare(
            file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


@contextlib.contextmanager
def _shown_by(progress: Progress) -> Iterator[None]:
    """Inside, the progress bars of TFDS go to `progress`."""
    from tensorflow_datasets.core import utils

    def follow(items: Iterable[Any], *, desc: str, unit: str, total: int | None = None, **_: Any) -> Iterator[Any]:
        if unit.strip() != "examples":
            yield from items
            return
        writes = desc.startswith("Shuffling")
        what = f"writing {Path(desc).name.partition('.')[0]}" if writes else desc.removesuffix("...").lower()
        for number, item in enumerate(items):
            if number % 100 == 0:
                progress(f"{what}, examples", number, total or 0)
            yield item
        if total:
            progress(f"{what}, examples", total, total)

    tqdm = utils.tqdm
    utils.tqdm = follow
    try:
        yield
    finally:
        utils.tqdm = tqdm


@contextlib.contextmanager
def _alone(full_name: str, lock: Path) -> Iterator[None]:
    """Two preparations of one set would delete what the other writes; the lock goes with its process."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock))
        except BlockingIOError as error:
            raise UserError(f"{full_name} is being prepared by another process; wait until it has ended") from error
        yield


def _explained(full_name: str, rest: str, directory: Path, error: Exception) -> Exception:
    """Error of one line for a failure; TFDS wraps what its builders raise."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError | RunError):
            return cause
        if isinstance(cause, NeedsTensorFlowError):
            return UserError(
                f"{full_name} is made with {cause}, which is not here; prepare it once where TensorFlow is installed "
                '(reading it needs none): python -c "import tensorflow_datasets as tfds; '
                f"tfds.builder('{rest}', data_dir='{directory}', file_format='array_record').download_and_prepare()\""
            )
        if isinstance(cause, ImportError):
            return UserError(
                f"{full_name} is made with {cause.name or short_line(cause)}: pip install it, and run this again"
            )
        number = cause.errno if isinstance(cause, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(cause):
            return RunError(f"{full_name}: the disk of {directory} is full; free some of it, and run this again")
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            return UserError(f"cannot write to {directory} ({str(cause)[:200]}); name a folder that you may write to")
        cause = cause.__cause__ or cause.__context__
    reason = f"{type(error).__name__}: {short_line(error)}"
    if isinstance(error, FileNotFoundError):
        reason = f"there is no {error.filename}"
    return RunError(
        f"{full_name} could not be prepared ({reason}); if one of its files is damaged, remove "
        f"{directory / 'downloads' / re.split('[/:]', rest)[0]} and run this again"
    )
