"""A page that runs an exported network in the browser, without a server: a folder for any static host, or one file.

Its parts stand in page/. Nothing of it asks the network for anything but its own files, which its policy holds.
"""

import base64
import gzip
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxcnn.export.network import Network
from jaxcnn.export.parity import Images
from jaxcnn.files import read_text, to_json

RUNTIME = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
SAMPLES = 20
_HERE = Path(__file__).parent / "page"


def folder_of(network: Network, model: bytes, images: Images, runtime: Mapping[str, bytes]) -> dict[str, bytes]:
    """Files of a folder by their names.

    Args:
      network: that is shown; it takes levels, not normalised images.
      model: its ONNX file.
      images: of which some are offered as samples.
      runtime: onnxruntime-web's files, by RUNTIME's names.
    """
    samples = _samples(network, images)
    files = {f"sample{number}.png": picture for number, (picture, _) in enumerate(samples, start=1)}
    facts = _facts(network, list(zip(files, (label for _, label in samples), strict=True)))
    files |= {"model.onnx": model, "facts.json": to_json(facts).encode(), **runtime}
    files |= {name: read_text(_HERE / name).encode() for name in ("page.css", "page.js")}
    files["index.html"] = _page(
        network,
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; worker-src 'self'",
        '<link rel="stylesheet" href="page.css">',
        '<script src="ort.wasm.min.js"></script>\n<script src="page.js"></script>',
    )
    return files | {"service-worker.js": _service_worker(files)}


def page_of(network: Network, model: bytes, images: Images, runtime: Mapping[str, bytes]) -> bytes:
    """The content of a single HTML file, which opens from disk. Arguments as of `folder_of`."""
    samples = _samples(network, images)
    pictures = {
        f"sample{number}": "data:image/png;base64," + base64.b64encode(picture).decode()
        for number, (picture, _) in enumerate(samples, start=1)
    }
    facts = _facts(network, list(zip(pictures, (label for _, label in samples), strict=True)))
    packed = {"model.onnx": model, "facts.json": to_json(facts).encode()} | {
        name: runtime[name] for name in RUNTIME[1:]
    }
    embedded = {name: base64.b64encode(gzip.compress(each, mtime=0)).decode() for name, each in packed.items()}
    scripts = [
        runtime[RUNTIME[0]].decode(),
        f"window.embedded = {to_json(embedded | pictures)};",
        read_text(_HERE / "page.js"),
    ]
    scripts = [each.replace("</script", "<\\/script") for each in scripts]
    style = read_text(_HERE / "page.css")
    hashes = " ".join(_hash(each) for each in scripts)
    return _page(
        network,
        f"default-src 'none'; script-src {hashes} blob: 'wasm-unsafe-eval'; style-src {_hash(style)}; "
        "img-src data: blob:",
        f"<style>{style}</style>",
        "\n".join(f"<script>{each}</script>" for each in scripts),
    )


def _page(network: Network, policy: str, style: str, scripts: str) -> bytes:
    facts = network.facts
    count, size = len(facts["class_names"]), " × ".join(map(str, network.image_shape[:2]))
    parts = {
        "title": escape(f"{facts['model']} · {facts['data']}"),
        "lead": escape(
            f"Knows {count:,} {'labels' if facts['task'] == 'multilabel' else 'classes'} of images, seen as {size} "
            "pixels. Images stay on this device."
        ),
        "footer": "Made by jaxcnn; runs on onnxruntime-web (Microsoft, MIT licence).",
        "policy": policy,
        "style": style,
        "scripts": scripts,
    }
    pieces = _split(read_text(_HERE / "page.html"), parts)
    return "".join(pieces).encode()


def _split(template: str, parts: Mapping[str, str]) -> list[str]:
    """The template's pieces with each {name} replaced, once: what is put in is not looked at again."""
    return [parts.get(each[1:-1], each) for each in re.split(r"(\{\w+\})", template)]


def _facts(network: Network, samples: Sequence[tuple[str, str]]) -> dict[str, Any]:
    told = ("model", "task", "class_names", "image_shape", "resized", "mean", "std", "channels")
    named = [{"file": file, "label": label} for file, label in samples]
    return {name: network.facts[name] for name in told} | {"samples": named}


def _samples(network: Network, images: Images) -> list[tuple[bytes, str]]:
    """(PNG, what it is), spread over the images."""
    places = np.unique(np.linspace(0, len(images.images) - 1, min(SAMPLES, len(images.images))).astype(int))
    return [(_png(images.images[place]), _label(network, images, place)) for place in places]


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(content, "PNG")
    return content.getvalue()


def _label(network: Network, images: Images, place: int) -> str:
    if images.labels is None:
        return "a random image" if images.random else ""
    names, label = network.facts["class_names"], np.asarray(images.labels[place])
    if network.facts["task"] == "multilabel":
        return ", ".join(name for name, there in zip(names, label, strict=True) if there >= 0.5) or "no label"
    return str(names[int(label.argmax()) if label.ndim else int(label)])


def _service_worker(files: Mapping[str, bytes]) -> bytes:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + hashlib.sha256(content).digest())
    parts = {"name": f"jaxcnn-{digest.hexdigest()[:16]}", "files": to_json(["./", *sorted(files)])}
    return "".join(_split(read_text(_HERE / "service-worker.js"), parts)).encode()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
