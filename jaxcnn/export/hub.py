"""A folder as Hugging Face's hub shows models: weights, config.json, and a card with the scores of evaluation.

Where timm has the architecture, the weights have its names, and `timm.create_model("local-dir:FOLDER")` loads the
folder; elsewhere they have ours, which `init_from` loads.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util
from safetensors.numpy import save

from jaxcnn.config import ModelConfig
from jaxcnn.errors import RunError, UserError
from jaxcnn.export.network import Network
from jaxcnn.files import read_json, to_json
from jaxcnn.run.checkpoint import flatten, unflatten
from jaxcnn.terminal import one_line
from jaxcnn.transfer import timm
from jaxcnn.transfer.state_dicts import read_safetensors
from jaxcnn.transfer.torchvision import Naming, export_state_dict, import_state_dict, their_name

# timm's names of architectures, where they are not ours
ARCHITECTURES = {
    "mobilenet_v2": "mobilenetv2_100",
    "regnet_x_400mf": "regnetx_004", "regnet_x_800mf": "regnetx_008", "regnet_x_1_6gf": "regnetx_016",
    "regnet_x_3_2gf": "regnetx_032", "regnet_x_8gf": "regnetx_080", "regnet_x_16gf": "regnetx_160",
    "regnet_x_32gf": "regnetx_320", "regnet_y_400mf": "regnety_004", "regnet_y_800mf": "regnety_008",
    "regnet_y_1_6gf": "regnety_016", "regnet_y_3_2gf": "regnety_032", "regnet_y_8gf": "regnety_080",
    "regnet_y_16gf": "regnety_160", "regnet_y_32gf": "regnety_320", "regnet_y_128gf": "regnety_1280",
    "vit_ti_16": "vit_tiny_patch16_224", "vit_s_16": "vit_small_patch16_224", "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224", "vit_l_16": "vit_large_patch16_224", "vit_l_32": "vit_large_patch32_224",
    **{f"efficientnet_lite{number}": f"tf_efficientnet_lite{number}" for number in range(5)},
}  # fmt: skip
LARGEST_FILE = 64 << 20  # bytes of evaluation.json
# Options that change nothing of what a network computes from its weights.
_TRAINING_ALONE = (
    "name", "stem", "dropout_rate", "stochastic_depth", "batch_norm", "batch_norm_momentum", "initializer", "remat",
    "dtype", "convolution",
)  # fmt: skip
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def architecture_of(network: Network, config: ModelConfig) -> str | None:
    """Timm's name of a network's architecture; None where timm has none that computes the same."""
    default = asdict(ModelConfig())
    asked = {name: value for name, value in asdict(config).items() if name not in _TRAINING_ALONE}
    changed = any(value != default[name] for name, value in asked.items())
    if config.name not in timm.NAMINGS or changed or getattr(network.module, "stem", "imagenet") != "imagenet":
        return None
    return ARCHITECTURES.get(config.name, config.name)


def to_hub(network: Network, config: ModelConfig, *, workdir: epath.Path, license_name: str) -> dict[str, bytes]:
    """The contents of the folder's files, by name.

    Args:
      network: of the run.
      config: the run's, of the model.
      workdir: its folder, whose evaluation.json, or else summary.json, has the scores.
      license_name: as the hub names licenses: `apache-2.0`, `cc-by-4.0`, …

    Raises:
      UserError: the run has no scores yet.
    """
    architecture = architecture_of(network, config)
    if architecture is None:
        arrays, facts = flatten(network.variables), {"library": "jaxcnn", **network.facts}
    else:
        arrays = export_state_dict(network.variables, timm.NAMINGS[config.name])
        facts = _timm_facts(network, architecture, config.name, license_name)
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    return {
        WEIGHTS: save(contiguous, {"format": "pt", **network.text()}),  # PyTorch's libraries look for the format
        CONFIG: (to_json(facts, indent=2) + "\n").encode(),
        CARD: card(network, scores_of(workdir), architecture=architecture, license_name=license_name).encode(),
    }


def upload(files: Mapping[str, bytes], repository: str) -> str:
    """Puts the files into a repository of huggingface.co, made where there is none; returns its address.

    Raises UserError where huggingface_hub or the right to write is missing, RunError where the hub does not answer.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi, errors
    except ImportError:
        raise UserError("--upload needs huggingface_hub: pip install 'jaxcnn[hub]'") from None
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        message = "Weights, config and card"
        return str(api.create_commit(repository, operations, commit_message=message).repo_url)
    except (errors.HFValidationError, errors.LocalTokenNotFoundError) as error:
        raise UserError(f"--upload={repository}: {one_line(error)}") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"--upload={repository}: no right to write there; hf auth login, with a token that may write"
            ) from None
        raise RunError(f"--upload={repository}: the hub answered {status}; try again") from None
    except OSError as error:
        raise RunError(f"--upload={repository}: the hub cannot be reached ({one_line(error)}); try again") from None


def run_hub(files: Mapping[str, bytes], inputs: np.ndarray, network: Network, config: ModelConfig) -> np.ndarray:
    """What the network makes of inputs with the weights that are read back."""
    arrays = read_safetensors(files[WEIGHTS], WEIGHTS)
    variables: Any = (
        unflatten(arrays, network.variables)
        if architecture_of(network, config) is None
        else import_state_dict(arrays, network.variables, timm.NAMINGS[config.name])
    )
    return replace(network, variables=variables).logits(inputs)


# ---- config.json


def _timm_facts(network: Network, architecture: str, model: str, license_name: str) -> dict[str, Any]:
    """What timm makes the model and its preprocessing by."""
    height, width, channels = network.image_shape
    classes, params = network.facts["class_names"], network.variables["params"]
    arguments: dict[str, Any] = {} if channels == 3 else {"in_chans": channels}
    if model.startswith("vit_") and (height, width) != (224, 224):
        arguments["img_size"] = [height, width]
    return {
        "architecture": architecture,
        "num_classes": len(classes),
        "num_features": params["head"]["kernel"].shape[0],
        "label_names": classes,
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [channels, height, width],
            "fixed_input_size": model.startswith("vit_"),
            "interpolation": "bilinear",
            "crop_pct": 1.0,  # the shorter side is the crop's
            "crop_mode": "center",
            "mean": network.facts["mean"],
            "std": network.facts["std"],
            "num_classes": len(classes),
            "first_conv": _first_convolution(params, timm.NAMINGS[model]),
            "classifier": their_name(("head", "kernel"), timm.NAMINGS[model]).removesuffix(".weight"),
            "license": license_name,
        },
    }


def _first_convolution(params: dict[str, Any], naming: Naming) -> str:
    """Timm's name of the convolution that sees the image."""
    kernels = [path for path in traverse_util.flatten_dict(params) if path[-1] == "kernel"]
    first = next(path for path in kernels if path[0].startswith(("stem", "patch_embedding")))
    return their_name(first, naming).removesuffix(".weight")


# ---- the card


def scores_of(workdir: epath.Path) -> dict[str, Any]:
    """`split`, `num_examples`, `scores` and `intervals`, of evaluation.json, or of summary.json's test split."""
    for name in ("evaluation.json", "summary.json"):
        try:
            found = read_json(workdir / name, limit=LARGEST_FILE)
            if name == "summary.json" and "test" not in found["splits"]:  # measure_test=false
                continue
            of_split = found["splits"]["test"] if name == "summary.json" else found["scores"]
            count = of_split["num_examples"] if name == "summary.json" else found["num_examples"]
            scores = {key: value for key, value in of_split.items() if isinstance(value, float)}
            if not scores:
                raise ValueError("it has no scores")
            return {
                "split": found.get("split", "test"), "num_examples": count, "scores": scores,
                "intervals": found.get("intervals") or {},
            }  # fmt: skip
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{workdir / name} is damaged ({one_line(error)}); evaluate the run again") from None
    raise UserError(f"{workdir} has no scores to tell: python -m jaxcnn.evaluate --workdir {workdir}")


def card(network: Network, measured: dict[str, Any], *, architecture: str | None, license_name: str) -> str:
    """A model card (Mitchell et al. 2019, arXiv:1810.03993)."""
    facts = network.facts
    count = sum(array.size for array in flatten(network.variables["params"]).values())
    height, width, _ = network.image_shape
    main = "accuracy" if "accuracy" in measured["scores"] else next(iter(measured["scores"]))
    head = [
        "---", f"license: {to_json(license_name)}", f"library_name: {'timm' if architecture else 'jax'}",
        "pipeline_tag: image-classification", "tags: [image-classification, jax, jaxcnn]",
        "model-index:", f"- name: {to_json(facts['experiment'])}", "  results:",
        "  - task: {type: image-classification}",
        f"    dataset: {{name: {to_json(facts['data'])}, type: {to_json(facts['data'])}}}",
        f"    metrics: [{{type: {main}, value: {measured['scores'][main]:.6g}}}]", "---", "",
    ]  # fmt: skip
    classes = facts["class_names"]
    says = "which of them it has" if facts["task"] == "multilabel" else "one of them"
    shown = ", ".join(_plain(name) for name in classes[:20]) + (", …" if len(classes) > 20 else "")
    body = [
        f"# {_plain(facts['experiment'])}: {facts['model']}", "",
        f"A network of {count:,} parameters that tells {len(classes):,} classes of images of {width} x {height} pixels "
        f"apart: {shown}.", "",
        "## Intended use", "",
        f"Images like those that it was trained on, {_plain(facts['data'])}, and these classes alone: of every image "
        f"it says {says}. Whether it is fit for other images, or to decide about people, was not measured.", "",
        "## Scores", "",
        f"{measured['split'].capitalize()} split, {measured['num_examples']:,} images; {facts['source']}.", "",
        "| score | value | 95 % interval |", "|---|---|---|", *_rows(measured), "",
        "## Use", "", *_usage(facts, architecture), "",
        f"Images ({facts['channels']}): the shorter side resized to {min(height, width)} pixels, the centre cropped, "
        f"and (levels / 255 - mean) / std with mean {facts['mean']} and std {facts['std']}.", "",
    ]  # fmt: skip
    return "\n".join([*head, *body])


def _rows(measured: dict[str, Any]) -> list[str]:
    rows = []
    for name, value in measured["scores"].items():
        interval = measured["intervals"].get(name)
        between = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        rows.append(f"| {name} | {value:.4f} | {between} |")
    return rows


def _usage(facts: dict[str, Any], architecture: str | None) -> list[str]:
    ours = ["```bash", "python -m jaxcnn.main --config EXPERIMENT.py --config.init_from=model.safetensors \\",
            f"    --config.model.name={facts['model']}", "```"]  # fmt: skip
    if architecture is None:
        return ["timm has no architecture that computes the same; the weights have jaxcnn's names.", "", *ours]
    call = 'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()'
    return ["```python", "import timm", "", call, "```"]


def _plain(text: str) -> str:
    """A name as Markdown shows it, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))
