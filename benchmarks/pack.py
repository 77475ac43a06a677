"""What a machine that has JAX but no network lacks for the benchmarks: python -m benchmarks.pack FOLDER [--python 3.12]

FOLDER gets `wheels/`, `requirements.txt`, by which pip installs of them what the machine lacks, and
`cifar10_files.npz`: the image files as they are stored, a ninth of their pixels' size when compressed. There,
`--unpack FILE` makes of these an npz of pixels that `data.name=npz:FILE` reads. `benchmarks/gpu.sh` calls both.
"""

import argparse
import hashlib
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import say

ROOT = Path(__file__).resolve().parents[1]
IMAGES = "cifar10_files.npz"
MOST_BYTES = 60 << 20  # of the folder: it may have to travel with the project

# What the benchmarks of `all.py:GPU_SHORT` import, beyond JAX and what that needs. A test holds it to be enough.
NEEDED = (
    "absl-py", "clu", "etils", "filelock", "flax", "humanize", "ml_collections", "msgpack", "optax", "orbax-checkpoint",
    "pillow", "protobuf", "Pygments", "PyYAML", "rich", "simplejson", "tensorstore", "typing_extensions", "wrapt",
)  # fmt: skip
INSTALLER = "pip"  # run from its wheel: not every Python has it
PLATFORMS = ("2_28", "2_27", "2_24", "2_17", "2_5")  # of manylinux: pip takes each name alone


def bounds() -> dict[str, str]:
    """Of what the project itself depends on: name in small letters -> what is required of it."""
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    plain = [each.replace("[epath]", "") for each in requirements]
    return {each.split(">")[0].split("<")[0].lower(): each for each in plain}


def requirements(names: tuple[str, ...]) -> list[str]:
    """Lines for pip: in the project's bounds where it has some, so that what the machine has stays where it may."""
    within = bounds()
    return [within.get(name.lower(), name) for name in names]


def download_wheels(folder: Path, names: tuple[str, ...], python: str) -> list[Path]:
    """The wheels of the versions that are installed here, where there are such for that Python."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", f"--dest={folder}"]
    command += [f"--platform=manylinux_{each}_x86_64" for each in PLATFORMS] + ["--platform=manylinux2014_x86_64"]
    exact = [f"{name}=={metadata.version(name)}" for name in (*names, INSTALLER)]
    subprocess.run([*command, *exact], check=True, stdout=subprocess.DEVNULL)
    return sorted(folder.glob("*.whl"))


def pack_images(file: Path, count: int | None) -> None:
    """CIFAR-10's files of $TFDS_DATA_DIR, one after another. Deflate finds the header that they share."""
    from jaxcnn.config import DataConfig
    from jaxcnn.data.decoding import decode_image
    from jaxcnn.data.sources import open_stored

    stored, pixels = open_stored(DataConfig(name="tfds:cifar10")), hashlib.sha256()
    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        records: Any = stored.splits[split].records
        numbers = range(len(records) if count is None else count)
        files = list(records.encoded(numbers))
        for each in files:
            pixels.update(decode_image(each, 3).tobytes())
        arrays[f"{split}_files"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_lengths"] = np.array([len(each) for each in files], np.int32)
        arrays[f"{split}_labels"] = records.labels()[: len(files)].astype(np.uint8)
    names = np.array(stored.class_names)
    np.savez_compressed(file, **arrays, class_names=names, sha256=pixels.hexdigest())


def unpack_images(packed: Path, file: Path) -> None:
    """Pixels uint8 [N, 32, 32, 3], those that pack_images saw: SystemExit where a decoder gives others."""
    decode, digest = _decoder(), hashlib.sha256()
    arrays: dict[str, Any] = {}
    with np.load(packed) as stored:
        for split in ("train", "test"):
            ends = np.cumsum(stored[f"{split}_lengths"])[:-1]
            images = np.stack([decode(each) for each in np.split(stored[f"{split}_files"], ends)])
            digest.update(images.tobytes())
            arrays |= {f"x_{split}": images, f"y_{split}": stored[f"{split}_labels"]}
        if digest.hexdigest() != stored["sha256"].item():
            raise SystemExit(f"{packed}: decoded here, its pixels are others; CIFAR-10 is left out")
        np.savez(file, **arrays, class_names=stored["class_names"])


def _decoder() -> Any:
    """Bytes uint8 [N] -> pixels uint8 [H, W, 3], by what is installed: both decoders give the same."""
    try:
        import cv2

        return lambda encoded: np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB))
    except ImportError:
        import io

        from PIL import Image

        return lambda encoded: np.asarray(Image.open(io.BytesIO(encoded.tobytes())).convert("RGB"))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return (
        sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) if path.is_dir() else path.stat().st_size
    )


def pack(folder: Path, *, python: str, left_out: set[str], images: int | None) -> None:
    """Fills the folder, and says the sizes."""
    names = tuple(name for name in NEEDED if name.lower() not in left_out)
    wheels = download_wheels(folder / "wheels", names, python)
    (folder / "requirements.txt").write_text("\n".join(requirements(names)) + "\n")
    (folder / "python").write_text(python + "\n")
    pack_images(folder / IMAGES, images)
    pure = [wheel for wheel in wheels if wheel.name.endswith("-none-any.whl")]
    for wheel in sorted(wheels, key=size_of, reverse=True):
        say(f"{size_of(wheel) / 2**20:7.2f} MiB  {wheel.name}")
    for what, path in ((f"{len(wheels)} wheels, {len(pure)} of them pure Python", folder / "wheels"),
                       (IMAGES, folder / IMAGES), ("together", folder)):  # fmt: skip
        say(f"{size_of(path) / 2**20:7.2f} MiB  {what}")
    if size_of(folder) > MOST_BYTES:
        say(f"more than {MOST_BYTES >> 20} MiB: leave out what the machine has, by --leave_out NAME NAME")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="of the machine without a network")
    parser.add_argument("--leave_out", nargs="+", default=[], help=f"what it has, of {', '.join(NEEDED)}")
    parser.add_argument("--images", type=int, help="so many of each split, to try things (default: all)")
    parser.add_argument("--unpack", type=Path, help="make this npz of the folder's images, and do nothing else")
    options = parser.parse_args()
    if options.unpack:
        unpack_images(options.folder / IMAGES, options.unpack)
        return
    left_out = {name.lower() for name in options.leave_out}
    if unknown := left_out - {name.lower() for name in NEEDED}:
        parser.error(f"--leave_out: {', '.join(sorted(unknown))} is not among {', '.join(NEEDED)}")
    from jaxcnn.errors import UserError

    try:
        pack(options.folder, python=options.python, left_out=left_out, images=options.images)
    except UserError as error:
        raise SystemExit(str(error)) from None
    except subprocess.CalledProcessError:
        raise SystemExit("pip could not fetch the wheels: see the lines above") from None


if __name__ == "__main__":
    main()
