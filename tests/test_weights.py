"""Weights of others: PyTorch's files without PyTorch, what fits a model, runs that begin with them; the list of all."""

import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from flax import traverse_util

from jaxcnn.config import Config, ModelConfig, validate
from jaxcnn.errors import RunError, UserError
from jaxcnn.machine import versions
from jaxcnn.models import MODELS
from jaxcnn.models.__main__ import main as list_models
from jaxcnn.models.published import PUBLISHED
from jaxcnn.models.resnet import BasicBlock, ResNet
from jaxcnn.run import workdir as workdir_lib
from jaxcnn.run.checkpoint import Checkpoints
from jaxcnn.training.build import build
from jaxcnn.transfer import timm, torch_files
from jaxcnn.transfer.__main__ import main as transfer
from jaxcnn.transfer.finding import TORCHVISION_FILES, find
from jaxcnn.transfer.pretrained import Pretrained, adapt_channels, fit, resize_positions, run_arrays
from jaxcnn.transfer.state_dicts import Tensors, read_file, write_safetensors
from jaxcnn.transfer.torchvision import NAMINGS, VIT, export_state_dict, published_name, their_name
from tests.hostile_files import called, dict_of, storage_of, tensor_of, unicode, zip_of
from tests.runs import arrays, assert_same_arrays, small_config, train

# ---- a writer of PyTorch's files: what torch.save pickles, under its names


class Storage:
    def __init__(self, values: np.ndarray, key: str, name: str):
        self.values, self.key, self.name = values, key, name


class Tensor:
    """A view of a storage, in elements."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
        self.arguments: tuple[Any, ...] = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Parameter:
    def __init__(self, data: Tensor):
        self.data = data

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_parameter, (self.data, True, OrderedDict())


KINDS = {
    "float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage",
    "bool": "BoolStorage", "float64": "DoubleStorage",
}  # fmt: skip


@pytest.fixture
def torch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules named as PyTorch's, while pickling: pickle writes where a function lies."""
    torch, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
        function = types.FunctionType((lambda *_: None).__code__, {}, name)
        function.__module__, function.__qualname__ = "torch._utils", name
        setattr(inner, name, function)
    for name in KINDS.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", inner)


def pickled(content: Any, *, legacy: bool = False) -> tuple[bytes, list[Storage]]:
    storages: dict[str, Storage] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, each: Any) -> Any:
            if not isinstance(each, Storage):
                return None
            storages[each.key] = each
            kind = getattr(sys.modules["torch"], each.name)
            return ("storage", kind, each.key, "cpu", len(each.values), *([None] if legacy else []))

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(content)
    return file.getvalue(), list(storages.values())


def zip_file(content: Any) -> bytes:
    data, storages = pickled(content)
    return zip_of(data, {each.key: each.values.tobytes() for each in storages})


def legacy_file(content: Any) -> bytes:
    data, storages = pickled(content, legacy=True)
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    parts = [pickle.dumps(each, protocol=2) for each in head]
    parts += [data, pickle.dumps([each.key for each in storages], protocol=2)]
    parts += [len(each.values).to_bytes(8, "little") + each.values.tobytes() for each in storages]
    return b"".join(parts)


def whole(values: np.ndarray, key: str) -> Tensor:
    strides = tuple(stride // values.itemsize for stride in values.strides)
    return Tensor(Storage(values.ravel(), key, KINDS[str(values.dtype)]), 0, values.shape, strides)


def read(content: bytes, folder: Path, name: str = "weights.pth") -> dict[str, np.ndarray]:
    (folder / name).write_bytes(content)
    return read_file(epath.Path(folder / name)).arrays


BASE = np.arange(24, dtype=np.float32)


def odd_tensors() -> tuple[Any, dict[str, Any]]:
    """Views of one storage, types, scalars; and what they are."""
    shared = Storage(BASE, "0", "FloatStorage")
    grid = BASE.reshape(4, 6)
    bfloat, half = (grid / 7).astype(ml_dtypes.bfloat16), (grid / 3).astype(np.float16)
    given = OrderedDict(
        transposed=Tensor(shared, 0, (6, 4), (1, 6)),
        part=Tensor(shared, 6, (2, 3), (6, 2)),
        scalar=Tensor(shared, 5, (), ()),
        empty=Tensor(shared, 0, (0, 3), (3, 1)),
        expanded=Tensor(shared, 2, (4,), (0,)),
        parameter=Parameter(Tensor(shared, 0, (4, 6), (6, 1))),
        bfloat=whole(bfloat, "1"),
        half=whole(half, "2"),
        long=whole(np.arange(5), "3"),
        truth=whole(np.array([True, False]), "4"),
    )
    expected = {
        "transposed": grid.T, "part": grid[1:3, 0:6:2], "scalar": np.float32(5), "empty": np.zeros((0, 3), np.float32),
        "expanded": np.full(4, 2, np.float32), "parameter": grid, "bfloat": bfloat, "half": half, "long": np.arange(5),
        "truth": np.array([True, False]),
    }  # fmt: skip
    return given, expected


@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.usefixtures("torch_names")
def test_tensors_are_read_as_pytorch_means_them(write, tmp_path):
    given, expected = odd_tensors()
    given._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]  # as in what modules return
    best = whole(np.ones(1, np.float32), "5")  # as PyTorch's own example of ImageNet has it
    for content in (given, {"epoch": 3, "note": "x", "best": best, "state_dict": given}):
        found = read(write(content), tmp_path)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array, err_msg=name)


class Evil:
    """Runs, when read by pickle."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def attacks(mark: Path) -> dict[str, bytes]:
    touch = f"open({str(mark)!r}, 'w')"
    calls = {
        "by a name": pickle.dumps({"a": Evil(mark)}),
        "exec": b"cbuiltins\nexec\n(S" + repr(touch).encode() + b"\ntR.",
        "system": f"cos\nsystem\n(S'touch {mark}'\ntR.".encode(),
        "an attribute": b"\x80\x04\x8c\x0ctorch._utils\x8c\x1e_rebuild_tensor_v2.__globals__\x93.",
        "eval in a protocol": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c"
        + bytes([len(touch)])
        + touch.encode()
        + b"\x85R.",
        "numpy": b"cnumpy.core.multiarray\n_reconstruct\n(tR.",
    }
    return calls


def test_pickles_that_would_run_code_do_not(tmp_path):
    mark = tmp_path / "ran"
    ran = 0
    for what, data in attacks(mark).items():
        for content in (zip_of(data), data, legacy_start() + data):
            with pytest.raises((UserError, RunError)) as caught:
                read(content, tmp_path)
            assert not mark.exists(), what
            assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match=r"holds more than tensors: a .*model\.state_dict"):
            read(zip_of(data), tmp_path)
        with contextlib.suppress(Exception):  # what each is worth: pickle itself would
            pickle.loads(data)
        ran += mark.exists()
        mark.unlink(missing_ok=True)
    assert ran >= 3


def legacy_start() -> bytes:
    return b"".join(pickle.dumps(each, protocol=2) for each in (0x1950A86A20F9469CFC6C, 1001, dict[str, int]()))


@pytest.mark.parametrize("write", [zip_file, legacy_file])
@pytest.mark.usefixtures("torch_names")
def test_damaged_files_are_told_in_a_line(write, tmp_path):
    content = write({"a": whole(np.arange(64, dtype=np.float32), "0"), "b": whole(np.ones((3, 3), np.float32), "1")})
    for length in (*range(0, len(content), 29), len(content) - 1):
        with pytest.raises(RunError, match="damaged"):
            read(content[:length], tmp_path)
    if write is zip_file:  # legacy files have no sums
        start = content.index(np.arange(64, dtype=np.float32).tobytes())
        with pytest.raises(RunError, match="CRC"):
            read(content[: start + 9] + b"\xff" + content[start + 10 :], tmp_path)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (25,), (1,)), (20, (5,), (1,)), (0, (4, 6), (7, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (1,))],
)
@pytest.mark.usefixtures("torch_names")
def test_tensors_outside_their_storage_are_refused(offset, shape, strides, tmp_path):
    with pytest.raises(RunError, match="tensor"):
        read(zip_file({"a": Tensor(Storage(BASE, "0", "FloatStorage"), offset, shape, strides)}), tmp_path)


DOUBLED = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))  # to hash: 2^60 steps
BOMBS = {
    "a tuple that is hashed": (dict_of(b"K\x01", key=DOUBLED), "a key that is no name"),
    "as a storage's key": (dict_of(tensor_of(storage=storage_of(key=DOUBLED))), "no size"),
    "as a storage's type": (dict_of(tensor_of(storage=storage_of(kind=DOUBLED))), "no type"),
    "numbers of one hash": (dict_of(b"K\x01", key=b"\x8a\x09" + (2**61 - 1 << 4).to_bytes(9, "little")), "no name"),
    "a memo of 2^28 places": (b"\x80\x02]r" + struct.pack("<I", 2**28) + b".", "no state dict but a list"),
    "text of 4 GB": (b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"w.", "expected"),
    "a method replaced": (dict_of(tensor_of() + b"}" + unicode("array") + b"Nsb"), "no OrderedDict"),
    "a tensor expanded": (dict_of(tensor_of(b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85", b"K\x00\x85")), "come to"),
    "a storage of two sizes": (
        dict_of(tensor_of())[:-1] + unicode("v") + tensor_of(storage=storage_of(b"K\x05")) + b"s.",
        "two types or sizes",
    ),
    "a list as a tensor's sizes": (dict_of(tensor_of(b"](" + b"K\x01" * 99 + b"e")), "no sizes"),
    "too many steps": (b"\x80\x02" + b"]" * 600_000 + b".", "500,000 steps"),
    "200,000 deep": (b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".", "no state dict but a tuple"),
    "an empty stack": (b"\x80\x02s.", "takes more than it has"),
    "across a mark": (b"\x80\x02K\x01(K\x01\x86.", "takes more than it has"),
    "an object": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "text as a function": (dict_of(unicode("OrderedDict") + b")R"), "no function"),
    "a name of 2,000 letters": (dict_of(tensor_of(), key=unicode("w" * 2000)), "2,000 letters"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_take_no_more_time_and_memory_than_their_bytes(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "MOST_STEPS", 500_000)
    data, said = BOMBS[name]
    with pytest.raises((UserError, RunError), match=said):
        read(zip_of(data, {"0": bytes(16)}), tmp_path)
    with pytest.raises((UserError, RunError)):
        read(legacy_start() + data + pickle.dumps(["0"], 2), tmp_path)


def test_a_pickle_as_python_2_wrote_it(tmp_path):
    """Text in Latin-1, and an OrderedDict of a list of pairs."""
    pairs = b"](](U\x01w" + tensor_of() + b"ee"
    data = b"\x80\x02" + called("collections", "OrderedDict", pairs) + b"."
    np.testing.assert_array_equal(read(zip_of(data, {"0": bytes(16)}), tmp_path)["w"], np.zeros(4, np.float32))


def test_members_of_a_zip_are_no_more_than_its_bytes(tmp_path):
    data, large = dict_of(tensor_of()), bytes(1 << 20)
    for what, said in (("order", "compressed"), ("data", "compressed"), ("twice", "twice"), ("over", "larger than")):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of zipfile's, at a name that is there
            archive.writestr("a/data.pkl", data, zipfile.ZIP_DEFLATED if what == "data" else zipfile.ZIP_STORED)
            archive.writestr("a/data/0", bytes(16))
            if what == "order":
                archive.writestr("a/byteorder", large, zipfile.ZIP_DEFLATED)
            if what == "twice":
                archive.writestr("a/data/0", bytes(16))
            if what == "over":  # two names of the same bytes
                archive.writestr("a/data/1", large)
                same = copy.copy(archive.infolist()[-1])
                same.filename = "a/data/2"
                archive.filelist.append(same)
        with pytest.raises(RunError, match=said):
            read(file.getvalue(), tmp_path)


@pytest.mark.usefixtures("torch_names")
def test_files_of_another_kind_are_told_in_a_line(tmp_path):
    for content, said in (
        (zip_file({"epoch": 3}), "there are no tensors"),
        (zip_file([1, 2]), "no state dict but a list"),
        (b"weights", "no PyTorch file"),
    ):
        with pytest.raises((UserError, RunError), match=said):
            read(content, tmp_path)
    with pytest.raises(UserError, match=r"weights are \.pth"):
        read(b"", tmp_path, "weights.h5")
    named = tmp_path / "resnet18-00000000.pth"
    named.write_bytes(zip_file({"a": whole(BASE, "0")}))
    with pytest.raises(RunError, match="SHA-256"):
        read_file(epath.Path(named))
    digest = hashlib.sha256(named.read_bytes()).hexdigest()
    assert read_file(epath.Path(named.rename(tmp_path / f"resnet18-{digest[:8]}.pth"))).sha256 == digest


def test_safetensors_are_read(tmp_path):
    file = epath.Path(tmp_path / "a.safetensors")
    given: dict[str, np.ndarray] = {
        "a": BASE.reshape(4, 6).T,
        "b": (BASE / 7).astype(ml_dtypes.bfloat16),
        "c": np.array(3, np.float32),
    }
    write_safetensors(file, given, {"format": "pt"})
    found = read_file(file).arrays
    for name, array in given.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    for content in (file.read_bytes()[:-3], file.read_bytes()[:20], b""):
        with pytest.raises(RunError, match="damaged"):
            read(content, tmp_path, "b.safetensors")
    empty = {"a": np.zeros((0, 3), np.float32), "b": np.array(1, np.float32)}
    write_safetensors(file, empty, {})
    found = read_file(file).arrays
    assert {name: array.shape for name, array in found.items()} == {"a": (0, 3), "b": ()}


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}}, "damaged"),
        ({"a" * 2000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "2,000 letters"),
        ({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, "type that is not read here: C64"),
        ({f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)}, "it begins with"),
    ],
)
def test_false_headers_of_safetensors_are_told_in_a_line(described, said, tmp_path):
    header = json.dumps(described).encode()
    size = max(each["data_offsets"][1] for each in described.values())
    with pytest.raises((UserError, RunError), match=said):
        read(len(header).to_bytes(8, "little") + header + bytes(size), tmp_path, "a.safetensors")


def test_weights_are_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    (tmp_path / "folder.pth").mkdir()
    for name, said in (("pipe", "pipe, not a file"), ("zero", "device"), ("folder", "a folder"), ("none", "No such")):
        with pytest.raises(UserError, match=f"cannot be read: .*{said}"):
            read_file(epath.Path(tmp_path / f"{name}.pth"))


# ---- where they lie


def test_weights_are_found_where_others_keep_them(tmp_path, monkeypatch):
    for name in ("JAXCNN_CACHE_DIR", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    own = tmp_path / "JAXCNN_CACHE_DIR/weights/resnet50-11ad3fa6.pth"
    with pytest.raises(UserError, match=rf"curl .*-o {own} https://download.pytorch.org/models/resnet50-11ad3fa6.pth"):
        find("torchvision:resnet50:v2")
    files = {
        "torchvision:resnet50:IMAGENET1K_V2": own,
        "torchvision:resnet50": tmp_path / "TORCH_HOME/hub/checkpoints/resnet50-0676ba61.pth",
        "hf:timm/x": tmp_path / "HF_HOME/hub/models--timm--x/snapshots/1/model.safetensors",
    }
    with pytest.raises(UserError, match=r"hf download timm/x model\.safetensors"):
        find("hf:timm/x")
    for name, file in files.items():
        file.parent.mkdir(parents=True)
        file.touch()
        assert Path(find(name)) == file
    newer = tmp_path / "HF_HOME/hub/models--timm--x/snapshots/2/model.safetensors"
    newer.parent.mkdir()
    newer.touch()
    (tmp_path / "HF_HOME/hub/models--timm--x/refs").mkdir()
    (tmp_path / "HF_HOME/hub/models--timm--x/refs/main").write_text("1")
    assert Path(find("hf:timm/x")) == files["hf:timm/x"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:resnet5", "did you mean 'resnet50'"),
        ("torchvision:resnet50:v3", "did you mean 'v"),
        ("hf:timm", "write hf:ORGANISATION/NAME"),
        ("hf:../x", "write hf:ORGANISATION/NAME"),
        ("hf:a/..", "write hf:ORGANISATION/NAME"),
        ("hf:a/b\n", "write hf:ORGANISATION/NAME"),
        ("nope://a/b", "there is no nope://"),
        ("no/such.pth", "no such file"),
        (str(Path(__file__).parent), "holds no run"),
    ],
)
def test_what_is_no_name_of_weights_is_told(name, said):
    with pytest.raises(UserError, match=said):
        find(name)


def test_the_files_named_are_of_models_that_are_here():
    assert set(TORCHVISION_FILES) <= set(MODELS)
    assert set(NAMINGS) - {"vit_ti_16", "vit_s_16"} == set(TORCHVISION_FILES)
    assert set(timm.NAMINGS) <= set(MODELS)


# ---- what fits a model

TINY = partial(ResNet, stage_sizes=(1, 1), block=BasicBlock, width=1 / 16)


def shapes(model: Any, size: int = 8, channels: int = 3) -> Any:
    images = jax.ShapeDtypeStruct((1, size, size, channels), "float32")
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return shapes(TINY(num_classes=10))


def filled(variables: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), variables)


def fitted(state_dict: dict[str, np.ndarray], variables: Any, **keywords: Any) -> Pretrained:
    keywords = {"model": "resnet18", "channels": 3, **keywords}
    return fit(Tensors(state_dict, "a.pth", "0"), None, variables, **keywords)


def test_what_was_exported_fits_bit_for_bit(tiny):
    given = filled(tiny)
    state_dict = export_state_dict(given, NAMINGS["resnet18"])
    for prefix in ("", "module.", "_orig_mod."):
        found = fitted({prefix + name: array for name, array in state_dict.items()}, tiny)
        jax.tree.map(np.testing.assert_array_equal, found.variables, given)
    assert len(found.loaded) == len(jax.tree.leaves(tiny))
    assert (found.adapted, found.initialised, found.skipped) == ((), (), ())
    half = fitted({name: array.astype(ml_dtypes.bfloat16) for name, array in state_dict.items()}, tiny)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.variables)} == {np.dtype(np.float32)}


def test_what_does_not_fit_is_an_error_unless_allowed(tiny):
    given = filled(tiny)
    state_dict = export_state_dict(given, NAMINGS["resnet18"])
    without = {name: array for name, array in state_dict.items() if name != "layer1.0.bn1.running_mean"}
    with pytest.raises(UserError, match=r"no 'layer1.0.bn1.running_mean' for stage1_block1/norm1/mean; .*init_allow"):
        fitted(without, tiny)
    found = fitted(without, tiny, allow=("*/norm1/mean",))
    assert found.initialised == ("stage1_block1/norm1/mean",)
    more = {**state_dict, "extra.weight": BASE, "extra.bias": BASE}
    with pytest.raises(
        UserError, match=r"'extra.bias' is not resnet18's \(and 1 more like it\); 32 of 32 .* fit; set init_allow"
    ):
        fitted(more, tiny)
    assert fitted(more, tiny, allow=("extra.*",)).skipped == ("extra.bias", "extra.weight")
    other = {**state_dict, "layer1.0.conv1.weight": np.zeros((4, 4, 5, 5), np.float32)}
    with pytest.raises(UserError, match="5x5x4x4 where stage1_block1/conv1/kernel is 3x3x4x4"):
        fitted(other, tiny)
    assert fitted(other, tiny, allow=("stage1_block1/conv1/*",)).initialised == ("stage1_block1/conv1/kernel",)
    assert fitted(other, tiny, allow=("layer1.0.conv1.weight",)).initialised == ("stage1_block1/conv1/kernel",)
    with pytest.raises(UserError, match="allows everything"):
        fitted({"other": BASE}, tiny, allow=("*",))
    with pytest.raises(RunError, match="conv1/kernel has values that are not finite"):
        fitted({**state_dict, "layer1.0.conv1.weight": np.full((4, 4, 3, 3), np.nan, np.float32)}, tiny)
    with pytest.raises(UserError, match="no array of floats"):
        fitted({**state_dict, "fc.bias": np.arange(10)}, tiny)


def test_a_head_of_another_size_begins_anew_when_asked(tiny):
    state_dict = export_state_dict(filled(tiny), NAMINGS["resnet18"])
    state_dict |= {"fc.weight": np.ones((7, 8), np.float32), "fc.bias": np.ones(7, np.float32)}
    with pytest.raises(UserError, match=r"set init_head=new for another number of classes$"):
        fitted(state_dict, tiny)
    found = fitted(state_dict, tiny, head="new")
    assert set(found.initialised) == {"head/kernel", "head/bias"}
    begun = filled(tiny, seed=1)
    result = found.over(begun)
    np.testing.assert_array_equal(result["params"]["head"]["kernel"], begun["params"]["head"]["kernel"])
    assert (result["params"]["stem_conv"]["kernel"] != begun["params"]["stem_conv"]["kernel"]).all()


def test_other_channels_are_adapted_when_asked(tiny):
    state_dict = export_state_dict(filled(tiny), NAMINGS["resnet18"])
    grey = shapes(TINY(num_classes=10), channels=1)
    with pytest.raises(UserError, match="set init_adapt=true for images of other channels"):
        fitted(state_dict, grey, channels=1)
    found = fitted(state_dict, grey, channels=1, adapt=True)
    assert found.adapted == ("stem_conv/kernel 7x7x3x4 -> 7x7x1x4",)
    kernel = state_dict["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(
        found.variables["params"]["stem_conv"]["kernel"], kernel.sum(2, keepdims=True), rtol=1e-6
    )
    six = adapt_channels(kernel, 6)
    np.testing.assert_allclose(six.sum(2), kernel.sum(2), rtol=1e-5, atol=1e-6)  # grey images give what they gave
    with pytest.raises(UserError, match=r"set model\.stem=imagenet, that of"):
        fitted(state_dict, shapes(TINY(num_classes=10, stem="small")))


def test_positions_are_resized_when_asked():
    vit = partial(MODELS["vit_ti_16"], num_classes=10, num_layers=1, features=8, hidden=8, num_heads=2)
    small, large = shapes(vit(), 32), shapes(vit(), 48)
    state_dict = export_state_dict(filled(small), VIT)
    keywords: dict[str, Any] = {"model": "vit_ti_16"}
    with pytest.raises(UserError, match="set init_adapt=true for images of other channels"):
        fitted(state_dict, large, **keywords)
    assert fitted(state_dict, large, **keywords, adapt=True).adapted == ("position_embedding 1x5x8 -> 1x10x8",)
    rng = np.random.default_rng(0)
    ramp = np.concatenate([rng.normal(size=(1, 1, 8)), np.repeat(np.arange(16.0), 64).reshape(1, 128, 8)[:, ::8]], 1)
    ramp = ramp.astype(np.float32)
    resized = resize_positions(ramp, 1 + 64)
    np.testing.assert_array_equal(resized[:, 0], ramp[:, 0])  # the class token's
    grid, larger = ramp[0, 1:, 0].reshape(4, 4), resized[0, 1:, 0].reshape(8, 8)
    np.testing.assert_allclose(larger.mean(), grid.mean(), rtol=1e-5)
    np.testing.assert_allclose(np.diff(larger[2:-2], axis=0), (grid[1, 0] - grid[0, 0]) / 2, atol=0.35)


@pytest.mark.parametrize(
    ("model", "ours", "theirs"),
    [
        ("vit_b_16", "layer12/attention/qkv/kernel", "blocks.11.attn.qkv.weight"),
        ("vit_b_16", "class_token", "cls_token"),
        ("convnext_tiny", "downsample3_conv/kernel", "stages.2.downsample.1.weight"),
        ("convnext_tiny", "stage4_block1/layer_scale", "stages.3.blocks.0.gamma"),
        ("convnext_tiny", "head/bias", "head.fc.bias"),
        ("convnext_tiny", "head_norm/bias", "head.norm.bias"),
        ("efficientnet_b0", "stage1_block1/project/norm/scale", "blocks.0.0.bn2.weight"),
        ("efficientnet_b0", "stage3_block2/attention/squeeze/bias", "blocks.2.1.se.conv_reduce.bias"),
        ("mobilenet_v2", "stage2_block1/project/conv/kernel", "blocks.1.0.conv_pwl.weight"),
        ("regnet_y_400mf", "stage2_block3/norm2/var", "s2.b3.conv2.bn.running_var"),
        ("regnet_y_400mf", "stage1_block1/shortcut_conv/kernel", "s1.b1.downsample.conv.weight"),
        ("seresnet50", "stage1_block1/attention/excite/kernel", "layer1.0.se.fc2.weight"),
    ],
)
def test_names_are_timms(model, ours, theirs):
    assert their_name(tuple(ours.split("/")), timm.NAMINGS[model]) == theirs


def test_names_of_older_files_are_todays():
    old = "features.denseblock1.denselayer2.norm.1.running_mean"
    assert published_name(old) == "features.denseblock1.denselayer2.norm1.running_mean"
    mlp = "encoder.layers.encoder_layer_3.mlp"
    assert published_name(f"{mlp}.linear_1.bias") == f"{mlp}.0.bias"
    assert published_name(f"{mlp}.linear_2.weight") == f"{mlp}.3.weight"
    assert published_name("layer1.0.bn1.weight") == "layer1.0.bn1.weight"


def test_weights_of_another_model_say_whose_they_may_be(tiny):
    sizes = {"a.weight": (PUBLISHED["resnet34"].num_params,)}
    with pytest.raises(UserError, match=r"another model: 0 of \d+ arrays of resnet18 fit; .* set model\.name=resnet34"):
        fitted({name: np.broadcast_to(np.float32(0), shape) for name, shape in sizes.items()}, tiny)
    with pytest.raises(UserError, match=r"names for mlp's weights are not known.*a run's folder"):
        fitted({"a": BASE}, tiny, model="mlp")


# ---- runs


@pytest.fixture(scope="module")
def first_run(tmp_path_factory, tiny_model) -> tuple[Config, Path]:
    """Another seed than the default's, so that what is loaded is not what would be drawn."""
    config, folder = small_config(seed=3, num_steps=2), tmp_path_factory.mktemp("first")
    train(config, folder)
    return config, folder


def test_a_run_begins_with_anothers_result(first_run, tmp_path):
    config, folder = first_run
    saved = arrays(folder, config)
    for source in (folder, tmp_path / "weights.safetensors"):
        if source.suffix:
            assert transfer(["", "export", "--workdir", str(folder), "--to", "jaxcnn", str(source)], 0.0) == 0
        run, feed = build(small_config(init_from=str(source)))
        state = run.init()
        feed.close()
        for path, leaf in traverse_util.flatten_dict(state.params, sep="/").items():
            assert np.asarray(leaf).tobytes() == saved[f"state/ema/params/{path}"].tobytes()
        for path, leaf in traverse_util.flatten_dict(state.batch_stats, sep="/").items():
            assert np.asarray(leaf).tobytes() == saved[f"state/ema/batch_stats/{path}"].tobytes()
        jax.tree.map(
            np.testing.assert_array_equal, state.ema, {"params": state.params, "batch_stats": state.batch_stats}
        )
        assert int(state.step) == 0
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))  # momentum
        buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) if leaf.size]
        assert len(buffers) == len(set(buffers))  # donated


@pytest.mark.slow
def test_resuming_needs_the_source_no_more(first_run, tmp_path):
    """And two steps are one and one, bit for bit."""
    _, folder = first_run
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    config = small_config(init_from=str(source), num_steps=4)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for step in (4,):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / str(step))
    shutil.rmtree(source)
    train(config, tmp_path / "resumed")
    assert_same_arrays(arrays(tmp_path / "resumed", config, 4), arrays(tmp_path / "whole", config, 4))
    with pytest.raises(UserError, match="no such file or folder"):
        train(config, tmp_path / "anew")


def test_a_runs_folder_says_where_its_weights_came_from(first_run, tmp_path):
    _, folder = first_run
    config = small_config(init_from=str(folder))
    run, feed = build(config)
    feed.close()
    assert run.pretrained is not None
    facts, workdir = run.pretrained.facts(), epath.Path(tmp_path)
    write = partial(workdir_lib.write_config, workdir, "test", config, run.data_facts(), versions())
    write(pretrained=facts)
    saved = json.loads((tmp_path / "config.json").read_text())["pretrained"]
    assert saved["sha256"] == run_arrays(epath.Path(folder))[0].sha256
    assert saved["source"].startswith(str(folder))
    write(pretrained=facts)  # begun again, before there was a checkpoint
    write()  # resumed
    with pytest.raises(UserError, match="does not hold what it held"):
        write(pretrained={**facts, "sha256": "other"})


def test_exported_weights_are_those_of_the_run(tmp_path, monkeypatch, capsys):
    """torchvision's names and back, bit for bit, and so the logits too."""
    monkeypatch.setitem(MODELS, "resnet18", TINY)
    config = small_config(model__name="resnet18", model__dropout_rate=None, optimizer__ema_decay=None)
    run, feed = build(config)
    state = jax.tree.map(np.asarray, run.init())
    state = state.replace(params=filled(state.params), batch_stats=filled(state.batch_stats, seed=1))
    folder, file = epath.Path(tmp_path / "run"), tmp_path / "a.safetensors"
    folder.mkdir()
    workdir_lib.write_config(folder, "test", config, run.data_facts(), versions())
    checkpoints = Checkpoints(folder / "checkpoints", keep_best=0)
    checkpoints.save(1, {"state": state, "totals": {}}, {})
    checkpoints.close()
    command = ["", "export", "--workdir", str(folder), str(file)]
    assert transfer(command, 0.0) == 0
    assert "named as torchvision does" in capsys.readouterr().out.replace("\n", " ")
    assert "layer2.0.downsample.1.running_var" in read_file(epath.Path(file)).arrays
    again, feed_again = build(
        small_config(**{"model__name": "resnet18", "model__dropout_rate": None, "init_from": str(file)})
    )
    feed.close()
    feed_again.close()
    found = again.init()
    jax.tree.map(np.testing.assert_array_equal, found.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, found.batch_stats, state.batch_stats)
    with pytest.raises(UserError, match="--force"):
        transfer(command, 0.0)
    assert transfer([*command, "--force", "--to", "timm"], 0.0) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["exprot"], "did you mean 'export'"),
        (["export", "a.safetensors"], "pass --workdir"),
        (["export", "--workdir", "x", "a.pth"], "one file, FILE.safetensors"),
        (["export", "--workdir", "x", "--to", "keras", "a.safetensors"], "is not known"),
        (["export", "--workdir", "/no/such", "a.safetensors"], "holds no run"),
    ],
)
def test_what_is_wrong_with_the_command_is_told(words, said):
    with pytest.raises(UserError, match=said):
        transfer(["", *words], 0.0)


def test_names_that_are_not_known_are_not_exported(first_run, tmp_path):
    with pytest.raises(UserError, match="use --to jaxcnn"):
        transfer(["", "export", "--workdir", str(first_run[1]), str(tmp_path / "a.safetensors")], 0.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init_head": "new"}, "init_head=new is for init_from"),
        ({"init_adapt": True}, "is for init_from"),
        ({"init_allow": ("*",)}, "is for init_from"),
        ({"init_from": "a.pth", "init_head": "drop"}, "init_head='drop' is not known"),
        ({"init_from": "a.pth", "model": ModelConfig(initializer="he_normal")}, "draws what init_from loads"),
    ],
)
def test_options_without_weights_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        validate(Config(**changes))


# ---- the list of models


def test_models_are_listed(capsys):
    assert list_models(["", "--filter", "resnet1*"], 0.0) == 0
    shown = capsys.readouterr().out
    assert "11,689,512" in shown
    assert "He et al. 2016, arXiv:1512.03385" in shown
    assert "resnet50" not in shown
    assert list_models(["", "--json"], 0.0) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(MODELS)
    assert {row["name"]: row["accuracy"] for row in rows}["resnet50"] == 76.13
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        list_models(["", "--filter=resnt50"], 0.0)


def test_a_model_that_nothing_is_published_of_is_counted(monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "new", TINY)
    assert list_models(["", "--filter=new", "--json"], 0.0) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["num_params"] == sum(leaf.size for leaf in jax.tree.leaves(shapes(TINY(num_classes=1000))["params"]))


def test_published_figures_are_of_all_models():
    assert set(PUBLISHED) == set(MODELS) - {"tiny"}
