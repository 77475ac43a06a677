"""A run's folder for Hugging Face's hub: what timm loads computes what the run does, and the card tells its scores."""

import json
from typing import Any

import numpy as np
import pytest
from etils import epath

from benchmarks.exports import random_network
from jaxcnn.config import ModelConfig
from jaxcnn.errors import RunError, UserError
from jaxcnn.export import hub
from jaxcnn.transfer.state_dicts import read_safetensors
from tests.commands import run_here
from tests.runs import small_config, train

SCORES = {
    "split": "test", "num_examples": 40, "scores": {"accuracy": 0.925, "log_loss": 0.31, "auc": None},
    "intervals": {"accuracy": [0.85, 0.98]},
}  # fmt: skip
# One of each naming; others are slow to trace.
KNOWN = ("resnet18", "mobilenet_v2", "vit_ti_16")


def scored(folder: Any) -> epath.Path:
    (folder / "evaluation.json").write_text(json.dumps(SCORES))
    return epath.Path(folder)


def network_of(name: str, **options: Any) -> Any:
    network = random_network(name, **options)
    network.facts.update(experiment="an experiment", source="a run, step 8")
    return network


def files_of(name: str, folder: Any) -> tuple[Any, dict[str, bytes]]:
    network = network_of(name, image_size=64 if name != "vit_ti_16" else 32, stem="imagenet")
    return network, hub.to_hub(network, ModelConfig(name=name), workdir=scored(folder), license_name="mit")


@pytest.mark.parametrize("name", KNOWN)
def test_weights_read_back_are_the_networks(name, tmp_path):
    network, files = files_of(name, tmp_path)
    facts = json.loads(files["config.json"])
    names = set(read_safetensors(files["model.safetensors"], "it"))
    assert {f"{facts['pretrained_cfg'][layer]}.weight" for layer in ("first_conv", "classifier")} <= names
    assert facts["label_names"] == network.facts["class_names"]
    assert facts["num_classes"] == len(facts["label_names"])
    images = np.random.default_rng(0).integers(0, 256, (2, *network.image_shape), np.uint8)
    found = hub.run_hub(files, images, network, ModelConfig(name=name))
    np.testing.assert_array_equal(found, network.logits(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*KNOWN, "densenet121", "regnet_y_400mf", "convnext_tiny", "efficientnet_lite0"])
def test_timm_computes_the_same(name, tmp_path):
    timm = pytest.importorskip("timm", reason="compares with timm: pip install timm")
    import torch

    network, files = files_of(name, tmp_path)
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    images = np.random.default_rng(0).integers(0, 256, (2, *network.image_shape), np.uint8)
    normalised = (images / 255 - np.array(config["mean"])) / np.array(config["std"])
    with torch.no_grad():
        theirs = model(torch.from_numpy(normalised.transpose(0, 3, 1, 2)).float()).numpy()
    ours = network.logits(images)
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())


@pytest.mark.parametrize(
    ("name", "options"), [("resnet18", {"stem": "small"}), ("lenet5", {}), ("cnn", {})], ids=["stem", "lenet5", "cnn"]
)
def test_what_timm_has_not_has_our_names(name, options, tmp_path):
    network = network_of(name, image_size=32, **options)
    files = hub.to_hub(network, ModelConfig(name=name), workdir=scored(tmp_path), license_name="mit")
    assert "architecture" not in json.loads(files["config.json"])
    assert all(
        key.startswith(("params/", "batch_stats/")) for key in read_safetensors(files["model.safetensors"], "it")
    )
    assert "timm has no architecture" in files["README.md"].decode()
    assert f"--config.model.name={name}\n" in files["README.md"].decode()


def test_options_of_the_model_make_it_another():
    network = random_network("resnet18", image_size=64, stem="imagenet")
    assert hub.architecture_of(network, ModelConfig(name="resnet18", dropout_rate=0.0, dtype="bfloat16")) == "resnet18"
    assert hub.architecture_of(network, ModelConfig(name="resnet18", activation="gelu")) is None


def test_card_tells_scores_and_stays_markdown(tmp_path):
    network = network_of("lenet5")
    network.facts.update(class_names=["a|b", "<i>\nx"], experiment="my: 'run'")
    card = hub.to_hub(network, ModelConfig(name="lenet5"), workdir=scored(tmp_path), license_name="mit")["README.md"]
    text = card.decode()
    assert text.startswith('---\nlicense: "mit"\n')
    assert "| accuracy | 0.9250 | 0.8500 to 0.9800 |" in text
    assert "metrics: [{type: accuracy, value: 0.925}]" in text
    assert r"a\|b, \<i\> x" in text
    assert "- name: \"my: 'run'\"" in text


def test_without_scores_nothing_is_made(tmp_path):
    with pytest.raises(UserError, match=r"has no scores to tell: python -m jaxcnn\.evaluate"):
        hub.scores_of(epath.Path(tmp_path))
    (tmp_path / "evaluation.json").write_text('{"scores": [1]}')
    with pytest.raises(UserError, match=r"evaluation\.json is damaged"):
        hub.scores_of(epath.Path(tmp_path))
    (tmp_path / "evaluation.json").write_text('{"scores": {"auc": null}, "num_examples": 3}')
    with pytest.raises(UserError, match="it has no scores"):
        hub.scores_of(epath.Path(tmp_path))


def test_command(tmp_path):
    train(small_config(num_steps=4), tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(SCORES))
    arguments = (f"--workdir={tmp_path / 'run'}", "--to=hf", str(tmp_path / "out"), "--license=apache-2.0")
    code, output, _ = run_here(*arguments, module="export.__main__")
    assert code == 0, output
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    code, _, errors = run_here(*arguments, module="export.__main__")
    assert code == 2
    assert "exists" in errors


# ---- the hub, which is not asked here


class FakeApi:
    """Notes what it is given; raises `fault` where there is one."""

    fault: Exception | None = None
    commits: list[Any]

    def create_repo(self, repository: str, *, exist_ok: bool) -> None:
        """Raises what it was given to raise."""
        assert exist_ok
        if self.fault is not None:
            raise self.fault

    def create_commit(self, repository: str, operations: Any, *, commit_message: str) -> Any:
        """Notes it."""
        type(self).commits = [(each.path_in_repo, each.path_or_fileobj) for each in operations]
        return type("Commit", (), {"repo_url": f"https://huggingface.co/{repository}"})()


def test_upload(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="uploading needs it: pip install huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    assert hub.upload({"README.md": b"x"}, "me/it") == "https://huggingface.co/me/it"
    assert FakeApi.commits == [("README.md", b"x")]
    for fault, kind, message in (
        (ConnectionError("no route"), RunError, "cannot be reached"),
        (huggingface_hub.errors.HFValidationError("bad name"), UserError, "bad name"),
    ):
        monkeypatch.setattr(FakeApi, "fault", fault)
        with pytest.raises(kind, match=message):
            hub.upload({"README.md": b"x"}, "me/it")
