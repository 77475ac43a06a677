"""Places of the weights that config.init_from names, and the command that fetches those that are not here."""

import contextlib
import os
import re
from pathlib import Path

from etils import epath

from jaxcnn.errors import UserError, nearest
from jaxcnn.files import read_text
from jaxcnn.machine import cache_dir

FORMS = "a .pth, .pt, .bin or .safetensors file, a run's folder, torchvision:NAME[:VERSION] or hf:ORGANISATION/NAME"


def find(name: str, *, option: str = "init_from") -> epath.Path:
    """The file, or the run's folder, that an option of the config names.

    Raises:
      UserError: it is not here, and how to get it; or `name` says nothing.
    """
    kind, _, rest = name.partition(":")
    if kind == "torchvision" and rest:
        return epath.Path(_of_torchvision(rest, option))
    if kind == "hf" and rest:
        return epath.Path(_of_hugging_face(rest, option))
    try:
        path = epath.Path(name) if "://" in name else epath.Path(os.path.abspath(os.path.expanduser(name)))
        exists, is_run = path.exists(), (path / "config.json").exists()
    except KeyError:  # epath's, for a scheme that it does not know
        raise UserError(f"{option}={name}: there is no {name.partition('://')[0]}:// here; it is {FORMS}") from None
    except Exception as error:
        raise UserError(f"{option}={name} cannot be read: {' '.join(str(error).split())}") from None
    if not exists:
        raise UserError(f"{option}={name}: there is no such file or folder; it is {FORMS}")
    if path.is_dir() and not is_run:
        raise UserError(f"{option}={name} is a folder that holds no run (no config.json); it is {FORMS}")
    return path


def _of_torchvision(name: str, option: str) -> Path:
    model, _, version = name.partition(":")
    if model not in TORCHVISION_FILES:
        raise UserError(f"{option}=torchvision:{name}: no such weights; {nearest(model, TORCHVISION_FILES)}")
    versions = TORCHVISION_FILES[model]
    version = version.lower().removeprefix("imagenet1k_") or next(iter(versions))
    if version not in versions:
        raise UserError(f"{option}=torchvision:{name}: no such version; {nearest(version, versions)}")
    file = f"{versions[version]}.pth"
    own = cache_dir() / "weights"
    torch_home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    for folder in (own, Path(torch_home).expanduser() / "hub" / "checkpoints"):
        if (folder / file).is_file():
            return folder / file
    raise UserError(
        f"{option}=torchvision:{name} is not here; fetch it: "
        f"curl --create-dirs -o {own / file} https://download.pytorch.org/models/{file}"
    )


def _of_hugging_face(name: str, option: str) -> Path:
    """The newest snapshot in the cache of huggingface_hub, by its main branch where it is known."""
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*/[\w.-]*\w[\w.-]*", name) or ".." in name:
        raise UserError(f"{option}=hf:{name}: write hf:ORGANISATION/NAME, e.g. hf:timm/resnet50.a1_in1k")
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    folder = hub / f"models--{name.replace('/', '--')}"
    snapshots = sorted(folder.glob("snapshots/*"), key=lambda each: each.stat().st_mtime, reverse=True)
    with contextlib.suppress(OSError, ValueError):
        newest = read_text(folder / "refs" / "main", limit=1000).strip()
        snapshots.sort(key=lambda each: each.name != newest)
    for snapshot in snapshots:
        for file in ("model.safetensors", "pytorch_model.bin"):
            if (snapshot / file).is_file():
                return snapshot / file
    raise UserError(f"{option}=hf:{name} is not in {hub}; fetch it: hf download {name} model.safetensors")


# https://download.pytorch.org/models/NAME.pth, by our model's name and torchvision's version of the weights
TORCHVISION_FILES: dict[str, dict[str, str]] = {
    "alexnet": {"v1": "alexnet-owt-7be5be79"},
    "convnext_base": {"v1": "convnext_base-6075fbad"},
    "convnext_large": {"v1": "convnext_large-ea097f82"},
    "convnext_small": {"v1": "convnext_small-0c510722"},
    "convnext_tiny": {"v1": "convnext_tiny-983f1562"},
    "densenet121": {"v1": "densenet121-a639ec97"},
    "densenet161": {"v1": "densenet161-8d451a50"},
    "densenet169": {"v1": "densenet169-b2777c0a"},
    "densenet201": {"v1": "densenet201-c1103571"},
    "efficientnet_b0": {"v1": "efficientnet_b0_rwightman-7f5810bc"},
    "efficientnet_b1": {"v1": "efficientnet_b1_rwightman-bac287d4", "v2": "efficientnet_b1-c27df63c"},
    "efficientnet_b2": {"v1": "efficientnet_b2_rwightman-c35c1473"},
    "efficientnet_b3": {"v1": "efficientnet_b3_rwightman-b3899882"},
    "efficientnet_b4": {"v1": "efficientnet_b4_rwightman-23ab8bcd"},
    "efficientnet_b5": {"v1": "efficientnet_b5_lukemelas-1a07897c"},
    "efficientnet_b6": {"v1": "efficientnet_b6_lukemelas-24a108a5"},
    "efficientnet_b7": {"v1": "efficientnet_b7_lukemelas-c5b4e57e"},
    "googlenet": {"v1": "googlenet-1378be20"},
    "inception_v3": {"v1": "inception_v3_google-0cc3c7bd"},
    "mobilenet_v2": {"v1": "mobilenet_v2-b0353104", "v2": "mobilenet_v2-7ebf99e0"},
    "mobilenet_v3_large": {"v1": "mobilenet_v3_large-8738ca79", "v2": "mobilenet_v3_large-5c1a4163"},
    "mobilenet_v3_small": {"v1": "mobilenet_v3_small-047dcff4"},
    "regnet_x_16gf": {"v1": "regnet_x_16gf-2007eb11", "v2": "regnet_x_16gf-ba3796d7"},
    "regnet_x_1_6gf": {"v1": "regnet_x_1_6gf-e3633e7f", "v2": "regnet_x_1_6gf-a12f2b72"},
    "regnet_x_32gf": {"v1": "regnet_x_32gf-9d47f8d0", "v2": "regnet_x_32gf-6eb8fdc6"},
    "regnet_x_3_2gf": {"v1": "regnet_x_3_2gf-f342aeae", "v2": "regnet_x_3_2gf-7071aa85"},
    "regnet_x_400mf": {"v1": "regnet_x_400mf-adf1edd5", "v2": "regnet_x_400mf-62229a5f"},
    "regnet_x_800mf": {"v1": "regnet_x_800mf-ad17e45c", "v2": "regnet_x_800mf-94a99ebd"},
    "regnet_x_8gf": {"v1": "regnet_x_8gf-03ceed89", "v2": "regnet_x_8gf-2b70d774"},
    "regnet_y_128gf": {
        "swag_linear_v1": "regnet_y_128gf_lc_swag-cbe8ce12",
        "swag_e2e_v1": "regnet_y_128gf_swag-c8ce3e52",
    },
    "regnet_y_16gf": {
        "v1": "regnet_y_16gf-9e6ed7dd",
        "v2": "regnet_y_16gf-3e4a00f9",
        "swag_e2e_v1": "regnet_y_16gf_swag-43afe44d",
        "swag_linear_v1": "regnet_y_16gf_lc_swag-f3ec0043",
    },
    "regnet_y_1_6gf": {"v1": "regnet_y_1_6gf-b11a554e", "v2": "regnet_y_1_6gf-0d7bc02a"},
    "regnet_y_32gf": {
        "v1": "regnet_y_32gf-4dee3f7a",
        "v2": "regnet_y_32gf-8db6d4b5",
        "swag_e2e_v1": "regnet_y_32gf_swag-04fdfa75",
        "swag_linear_v1": "regnet_y_32gf_lc_swag-e1583746",
    },
    "regnet_y_3_2gf": {"v1": "regnet_y_3_2gf-b5a9779c", "v2": "regnet_y_3_2gf-9180c971"},
    "regnet_y_400mf": {"v1": "regnet_y_400mf-c65dace8", "v2": "regnet_y_400mf-e6988f5f"},
    "regnet_y_800mf": {"v1": "regnet_y_800mf-1b27b58c", "v2": "regnet_y_800mf-58fc7688"},
    "regnet_y_8gf": {"v1": "regnet_y_8gf-d0d0e4a8", "v2": "regnet_y_8gf-dc2b1b54"},
    "resnet101": {"v1": "resnet101-63fe2227", "v2": "resnet101-cd907fc2"},
    "resnet152": {"v1": "resnet152-394f9c45", "v2": "resnet152-f82ba261"},
    "resnet18": {"v1": "resnet18-f37072fd"},
    "resnet34": {"v1": "resnet34-b627a593"},
    "resnet50": {"v1": "resnet50-0676ba61", "v2": "resnet50-11ad3fa6"},
    "resnext101_32x8d": {"v1": "resnext101_32x8d-8ba56ff5", "v2": "resnext101_32x8d-110c445d"},
    "resnext101_64x4d": {"v1": "resnext101_64x4d-173b62eb"},
    "resnext50_32x4d": {"v1": "resnext50_32x4d-7cdf4587", "v2": "resnext50_32x4d-1a0047aa"},
    "shufflenet_v2_x0_5": {"v1": "shufflenetv2_x0.5-f707e7126e"},
    "shufflenet_v2_x1_0": {"v1": "shufflenetv2_x1-5666bf0f80"},
    "shufflenet_v2_x1_5": {"v1": "shufflenetv2_x1_5-3c479a10"},
    "shufflenet_v2_x2_0": {"v1": "shufflenetv2_x2_0-8be3c8ee"},
    "squeezenet1_0": {"v1": "squeezenet1_0-b66bff10"},
    "squeezenet1_1": {"v1": "squeezenet1_1-b8a52dc0"},
    "vgg11": {"v1": "vgg11-8a719046"},
    "vgg11_bn": {"v1": "vgg11_bn-6002323d"},
    "vgg13": {"v1": "vgg13-19584684"},
    "vgg13_bn": {"v1": "vgg13_bn-abd245e5"},
    "vgg16": {"v1": "vgg16-397923af"},
    "vgg16_bn": {"v1": "vgg16_bn-6c64b313"},
    "vgg19": {"v1": "vgg19-dcbb9e9d"},
    "vgg19_bn": {"v1": "vgg19_bn-c79401a0"},
    "vit_b_16": {
        "v1": "vit_b_16-c867db91",
        "swag_e2e_v1": "vit_b_16_swag-9ac1b537",
        "swag_linear_v1": "vit_b_16_lc_swag-4e70ced5",
    },
    "vit_b_32": {"v1": "vit_b_32-d86f8d99"},
    "vit_l_16": {
        "v1": "vit_l_16-852ce7e3",
        "swag_e2e_v1": "vit_l_16_swag-4f3808c9",
        "swag_linear_v1": "vit_l_16_lc_swag-4d563306",
    },
    "vit_l_32": {"v1": "vit_l_32-c7638314"},
    "wide_resnet101_2": {"v1": "wide_resnet101_2-32ee1156", "v2": "wide_resnet101_2-d733dc28"},
    "wide_resnet50_2": {"v1": "wide_resnet50_2-95faca4d", "v2": "wide_resnet50_2-9ba9bcbe"},
}
