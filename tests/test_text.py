"""Texts: what is refused and in which words, what the models see of them, word vectors, and the commands on a run."""

import gzip
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jaxcnn.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TextConfig,
    from_dict,
    to_dict,
)
from jaxcnn.data.prepare import prepare
from jaxcnn.data.records import NotPreparedError
from jaxcnn.data.tfds_texts import read_tfds_texts
from jaxcnn.data.vocabulary import Vocabulary
from jaxcnn.errors import RunError, UserError
from jaxcnn.models import TEXT_MODELS
from jaxcnn.models.text_transformer import sines
from jaxcnn.results.diagnosis import diagnose
from jaxcnn.run.facts import read_facts
from jaxcnn.run.workdir import read_config
from jaxcnn.tasks.text.source import open_source
from jaxcnn.tasks.text.vectors import read_vectors
from jaxcnn.training.build import build
from tests.fake_tfds import info, shard_path
from tests.runs import arrays, assert_same_arrays, begin, changed, train
from tests.test_language import language_config, text_of
from tests.test_prepare import Server, register, tar

GOLDEN = Path(__file__).parent / "goldens" / "torch" / "text_cnn.npz"


def text_config(name: str, **changes: Any) -> Config:
    """A tiny CNN, 12 steps of 16 texts; a key `a__b` sets config.a.b."""
    config = Config(
        task="text", num_steps=12, batch_size=16, eval_every_epochs=2, log_every_steps=4,
        data=DataConfig(name=name), text=TextConfig(embedding_size=8),
        model=ModelConfig(name="text_cnn", features=8, dropout_rate=0.1),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.02),
        checkpoint=CheckpointConfig(every_steps=4, keep_last=8), tensorboard=False, compilation_cache=False,
    )  # fmt: skip
    return changed(config, changes)


def reviews(folder: Path, count: int = 60) -> str:
    """A word tells the class, among others that do not."""
    rng, lines = np.random.default_rng(0), ["text,label"]
    for number in range(count):
        words = [f"w{rng.integers(20)}" for _ in range(rng.integers(3, 9))]
        words[rng.integers(len(words))] = ("fine", "awful")[number % 2]
        lines.append(f"{' '.join(words)},{('good', 'bad')[number % 2]}")
    (folder / "reviews.csv").write_text("\n".join(lines) + "\n")
    return f"csv:{folder / 'reviews.csv'}"


# ---- what is refused

ROWS = "one text,a\nanother text,b\n" * 8


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty; a table begins with a line that names its columns"),
        ("text,label\n", {}, "has a header and no rows"),
        ("words,label\n" + ROWS, {}, "has no column 'text'; one of: label, words (text.column names it)"),
        ("text,class\n" + ROWS, {}, "has no column 'label'"),
        (
            "text,class\n" + ROWS,
            {"label": "klass"},
            "has no column 'klass'; did you mean 'class'?",
        ),
        ("text,label\n" + ROWS + "more\n", {}, "line 18, has 1 cells, and the header 2"),
        ("text,label\n" + ROWS + "more,\n", {}, "line 18, column 'label' is empty"),
        ("text,label\n" + ROWS + ",a\n  ,b\n", {}, "line:18 is empty, and so are 1 more; mend it, or leave it out"),
        ("text,label\n" + ROWS + "a\0b,a\n", {}, "line:18 has a NUL byte"),
        ("text,label\n" + "one text,a\n" * 9, {}, "all texts are 'a': there is nothing to tell apart"),
        ("text,label,split\n" + "one text,a,trian\n", {}, "line 2, has the split 'trian'; did you mean 'train'?"),
        ('text,label\n"one,a\n', {}, "is no CSV"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, options, message):
    (tmp_path / "texts.csv").write_text(text)
    config = Config(task="text", data=DataConfig(name=f"csv:{tmp_path / 'texts.csv'}"), text=TextConfig(**options))
    with pytest.raises(UserError) as error:
        open_source(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_bytes_are_one_line(tmp_path):
    for name, write in (("csv:latin.csv", "latin.csv"), ("folder:set", "set/good/1.txt")):
        (tmp_path / write).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / write).write_bytes("text,label\ncaf\xe9,a\n".encode("latin-1"))
        with pytest.raises(UserError, match="is no text in UTF-8; save it again"):
            open_source(Config(task="text", data=DataConfig(name=name, dir=str(tmp_path))))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits", "is no known set of texts: one of csv:PATH, folder:PATH, tfds:NAME"),
        ("reviews.csv", "did you mean csv:reviews.csv?"),
        ("csv:nowhere.csv", "there is no 'nowhere.csv'"),
        ("tfds:", "is no known set of texts"),
    ],
)
def test_a_wrong_name_is_one_line(name, message):
    with pytest.raises(UserError) as error:
        open_source(text_config(name))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment__flip": True}, "augment.flip=True is read by task=classification, multilabel, segmentation only"),
        ({"task": "tabular"}, "text.embedding_size=8 is read by task=text only"),
        ({"text__channels": "static"}, "text.channels=static keeps word vectors as they are; name them"),
    ],
)
def test_options_that_nothing_reads_are_refused(changes, message):
    with pytest.raises(UserError) as error:
        text_config("csv:x.csv", **changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__name": "cnn", "model__features": None},
            "model.name=cnn is not for task=text; choose one of: text_cnn",
        ),
        ({"model__name": "text_bag"}, "model.features=8: text_bag has no such option"),
        (
            {"loss__name": "binary_cross_entropy"},
            "is for labels, and a text is of a class; set loss.name=cross_entropy",
        ),
        ({"checkpoint__best_metric": "rmse"}, "is not measured with 2 classes"),
    ],
)
def test_what_does_not_suit_texts_is_one_line(tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        build(text_config(reviews(tmp_path), **changes))
    assert message in str(error.value)


def test_models_of_texts_refuse_images():
    config = Config(model=ModelConfig(name="text_cnn"))
    with pytest.raises(UserError, match=r"model\.name=text_cnn is for task=text; choose another"):
        build(config)


# ---- what is read


def test_a_million_words_are_cut_and_said(tmp_path):
    file, told = tmp_path / "long.csv", []
    file.write_text("text,label\n" + ROWS + f"{'word ' * 10**6},a\n")
    config = text_config(f"csv:{file}", text__max_length=50, data__validation_fraction=0.3)
    source = open_source(config, progress=lambda *what: told.append(what[0]))
    assert sum(map(len, source.splits.values())) == 17  # nothing is lost
    assert source.example["tokens"].shape == (50,)
    assert sum(source.coverage.cut.values()) == 1
    assert any("texts of more than 50 words are cut: 1 of" in line for line in told), told


def test_the_vocabulary_is_of_train_alone(tmp_path):
    file = tmp_path / "split.csv"
    file.write_text("text,label,split\n" + ROWS.replace(",a", ",a,train").replace(",b", ",b,train")
                    + "only here,a,validation\nthere is,b,test\n")  # fmt: skip
    source = open_source(text_config(f"csv:{file}"))
    assert source.vocabulary.entries == ("text", "another", "one")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 16, "validation": 1, "test": 1}
    assert source.coverage.known == {"train": 1.0, "validation": 0.0, "test": 0.0}
    facts = source.facts()
    assert Vocabulary.from_plain(json.loads(json.dumps(facts["vocabulary"]))) == source.vocabulary


def test_a_folder_of_classes_is_read_as_a_csv_is(tmp_path):
    for split in ("train", "test"):
        for name in ("neg", "pos"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(10):
                (tmp_path / "set" / split / name / f"{number}.txt").write_text(f"{name} text {number}\n")
    config = text_config(f"folder:{tmp_path / 'set'}", data__exclude=str(tmp_path / "out.txt"))
    (tmp_path / "out.txt").write_text("train/neg/3.txt\n")
    source = open_source(config)
    assert source.class_names == ("neg", "pos")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 17, "validation": 2, "test": 20}
    records = source.splits["train"].records
    assert "train/neg/3.txt" not in map(records.identifier, range(len(records)))
    (tmp_path / "set" / "extra").mkdir()
    with pytest.raises(UserError, match="'extra' stands beside 'test', and is no split"):
        open_source(config)
    shutil.rmtree(tmp_path / "set" / "extra")
    kept = source.record_numbers
    (tmp_path / "set" / "train" / "neg" / "5.txt").write_text("changed")
    with pytest.raises(UserError, match="the data are not those"):
        open_source(config, kept=kept)


def write_text_set(directory: Path, texts: dict[str, list[tuple[bytes, int]]]) -> Path:
    """A set of texts of two classes, as TFDS prepares it."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder, module = directory / "plots" / "1.0.0", "tensorflow_datasets.core.features"
    folder.mkdir(parents=True)
    for split, rows in texts.items():
        writer = ArrayRecordWriter(str(shard_path(folder, "plots", split, 0, 1)), "group_size:1")
        for text, label in rows:
            example = tf_example_pb2.Example()
            for name in ("body", "title"):
                example.features.feature[name].bytes_list.value.append(text if name == "body" else b"a title")
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
    described = info("plots", "1.0.0", None, {split: len(rows) for split, rows in texts.items()}, 1, "array_record")
    described["supervisedKeys"] = {"tuple": {"items": [{"featureKey": "body"}, {"featureKey": "label"}]}}
    (folder / "dataset_info.json").write_text(json.dumps(described))
    of_text = {"pythonClassName": f"{module}.text_feature.Text", "text": {}}
    of_label = {"pythonClassName": f"{module}.class_label_feature.ClassLabel", "classLabel": {"numClasses": "2"}}
    features = {"body": of_text, "title": of_text, "label": of_label}
    (folder / "features.json").write_text(
        json.dumps({"pythonClassName": f"{module}.features_dict.FeaturesDict", "featuresDict": {"features": features}})
    )
    (folder / "label.labels.txt").write_text("neg\npos\n")
    return folder


def test_texts_of_tfds_are_read_without_tensorflow(tmp_path):
    rows = [(f"text number {n}".encode(), n % 2) for n in range(20)]
    write_text_set(tmp_path, {"train": rows, "test": rows[:6], "unsupervised": [(b"who knows", -1)]})
    config = text_config("tfds:plots", data__dir=str(tmp_path))
    source = open_source(config)
    assert source.class_names == ("neg", "pos")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 18, "validation": 2, "test": 6}
    first = source.splits["test"][0]
    assert source.vocabulary.decode(first["tokens"]) == "text number 0"
    assert source.splits["test"].records.identifier(3) == "test:3"
    titles = open_source(text_config("tfds:plots", data__dir=str(tmp_path), text__column="title"))
    assert titles.vocabulary.entries == ("a", "title")
    with pytest.raises(UserError, match=r"text\.column='titel': tfds:plots has no such text; did you mean 'title'"):
        open_source(text_config("tfds:plots", data__dir=str(tmp_path), text__column="titel"))
    with pytest.raises(NotPreparedError, match=r"python -m jaxcnn\.data prepare imdb_reviews"):
        open_source(text_config("tfds:imdb_reviews", data__dir=str(tmp_path)))
    shutil.rmtree(tmp_path / "plots")
    write_text_set(tmp_path, {"train": [*rows[:5], (b"\xff", 1)], "test": rows[:2]})
    with pytest.raises(RunError, match="split 'train': record 5 is damaged"):
        open_source(config)


def test_a_set_of_tfds_is_prepared_without_tensorflow(tmp_path, monkeypatch):
    """IMDB's reviews, from an archive in the published format; what is read is what was served."""
    import tensorflow_datasets as tfds

    builder, server = tfds.builder_cls("imdb_reviews"), Server()
    texts = {
        f"aclImdb/{split}/{name}/{number}_1.txt": f"{split} {name} {number} é"
        for split, names in (("train", ("neg", "pos", "unsup")), ("test", ("neg", "pos")))
        for name in names
        for number in range(10)
    }
    server.files["aclImdb_v1.tar.gz"] = gzip.compress(tar({name: text.encode() for name, text in texts.items()}))
    monkeypatch.setattr(sys.modules[builder.__module__], "_DOWNLOAD_URL", f"{server.url}aclImdb_v1.tar.gz")
    register(builder, server, monkeypatch)
    prepare("imdb_reviews", data_dir=str(tmp_path))
    server.close()
    names, splits = read_tfds_texts("tfds:imdb_reviews", "imdb_reviews", str(tmp_path))
    assert names == ("neg", "pos")
    for split, found in splits.items():
        served = [(text, names.index(text.split()[1])) for text in texts.values() if text.startswith(split)
                  and "unsup" not in text]  # fmt: skip
        assert sorted(zip(found.texts, found.labels.tolist(), strict=True)) == sorted(served)
    assert set(splits) == {"train", "test"}


# ---- models


def small_model(name: str, **changes: Any) -> Any:
    options: dict[str, dict[str, Any]] = {
        "text_transformer": {"features": 8, "num_heads": 2},
        "text_bag": {"hidden": (8,)},
    }
    return TEXT_MODELS[name](
        num_classes=3, vocabulary_size=20, embedding_size=6, **options.get(name, {"features": 8}), **changes
    )


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in TEXT_MODELS), ("text_lstm", {"bidirectional": True}), ("text_gru", {"layers": 2})],
)
def test_padding_changes_nothing(name, changes):
    model, rng = small_model(name, **changes), np.random.default_rng(0)
    lengths = (1, 3, 7)
    texts = np.zeros((3, 7), np.int32)
    for row, length in enumerate(lengths):
        texts[row, :length] = rng.integers(1, 20, length)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), texts)
    variables = jax.tree.map(lambda x: x + 0.1, variables)  # no bias is 0, which would hide what padding gives
    apply = jax.jit(partial(model.apply, variables, train=False))
    short = apply(texts)
    np.testing.assert_allclose(short, apply(np.pad(texts, ((0, 0), (0, 9)))), atol=2e-6)
    np.testing.assert_allclose(short[1], apply(texts[1:2, :3])[0], atol=2e-6)  # alone
    changed = texts.copy()
    changed[2, 6] = changed[2, 6] % 19 + 1
    assert np.abs(apply(changed) - short)[2].max() > 1e-4  # the last word counts


def test_kims_network_is_pytorchs_under_the_same_weights():
    """The golden is of torch.nn.Conv1d with padding of a window less one, on each text alone."""
    golden = np.load(GOLDEN)
    model = TEXT_MODELS["text_cnn"](
        num_classes=3, vocabulary_size=len(golden["embedding.weight"]), embedding_size=6, features=5
    )
    params = {
        "embedding": {"embedding": golden["embedding.weight"]},
        "head": {"kernel": golden["head.weight"].T, "bias": golden["head.bias"]},
        **{
            f"conv{size}": {
                "kernel": golden[f"conv{size}.weight"].transpose(2, 1, 0)[:, None], "bias": golden[f"conv{size}.bias"]
            }
            for size in (3, 4, 5)
        },
    }  # fmt: skip

    def loss(params):
        logits = model.apply({"params": params}, jnp.asarray(golden["tokens"]), train=False)
        return (logits * golden["weights"]).sum(), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)
    np.testing.assert_allclose(gradients["head"]["kernel"].T, golden["by_head.weight"], atol=1e-5)
    np.testing.assert_allclose(gradients["embedding"]["embedding"], golden["by_embedding.weight"], atol=1e-5)
    for size in (3, 4, 5):
        kernel = gradients[f"conv{size}"]["kernel"][:, 0].transpose(2, 1, 0)
        np.testing.assert_allclose(kernel, golden[f"by_conv{size}.weight"], atol=1e-5)


def test_positions_are_sines_that_tell_places_apart():
    found = sines(50, 6)
    np.testing.assert_allclose(found[3, 0], np.sin(3), atol=1e-6)
    np.testing.assert_allclose(found[:, 3], np.cos(np.arange(50)), atol=1e-6)
    assert np.abs(found[:, None] - found[None]).max(axis=-1)[~np.eye(50, dtype=bool)].min() > 0.01


def test_the_tuned_channel_moves_and_the_static_one_stays(tmp_path):
    (tmp_path / "vectors.txt").write_text("fine 1 2 3\nawful -1 -2 -3\n")
    options = {"text__embeddings": str(tmp_path / "vectors.txt"), "text__embedding_size": None}
    config = text_config(reviews(tmp_path), **options, text__channels="both", optimizer__name="adamw",
                         optimizer__weight_decay=0.5)  # fmt: skip
    run, feed = build(config)
    before = jax.device_get(run.init().params)
    row = Vocabulary.from_plain(run.source.facts()["vocabulary"]).encode("fine awful")
    assert before["embedding"]["embedding"].shape == before["static_embedding"]["embedding"].shape
    np.testing.assert_array_equal(before["embedding"]["embedding"][row], [[1, 2, 3], [-1, -2, -3]])
    feed.close()
    train(config, tmp_path / "run")
    after = arrays(tmp_path / "run", config)
    static = after["state/params/static_embedding/embedding"]
    np.testing.assert_array_equal(static, before["static_embedding"]["embedding"])
    assert np.abs(after["state/params/embedding/embedding"][row] - [[1, 2, 3], [-1, -2, -3]]).max() > 0.01


# ---- word vectors

WORDS = Vocabulary("word", ("the", "paris", "cat"))
ROW, PARIS = np.array([0.5, -1, 2], np.float32), np.array([1, 2, 3], np.float32)


def word2vec_binary(path: Path, words: dict[str, np.ndarray], count: int | None = None, size: int = 3) -> None:
    body = b"".join(word.encode() + b" " + vector.astype("<f4").tobytes() + b"\n" for word, vector in words.items())
    path.write_bytes(f"{len(words) if count is None else count} {size}\n".encode() + body)


def test_all_formats_hold_the_same_vectors(tmp_path):
    (tmp_path / "glove.txt").write_text("The 9 9 9\nthe 0.5 -1 2\n. . . 1.0 2.0 3.0\nParis 1 2 3\n")
    (tmp_path / "word2vec.txt").write_text("3 3\nthe 0.5 -1 2\nParis 1 2 3\nnew 1 1 1\n")
    word2vec_binary(tmp_path / "vectors.bin", {"the": ROW, "Paris": PARIS, "new": ROW})
    for name, count in (("glove.txt", 4), ("word2vec.txt", 3), ("vectors.bin", 3)):
        found = read_vectors(str(tmp_path / name), WORDS)
        assert (found.size, found.num_words) == (3, count)
        np.testing.assert_array_equal(found.found, [False, False, False, True, True, False])
        np.testing.assert_array_equal(found.table[3:5], [ROW, [1, 2, 3]])
        assert found.share == pytest.approx(2 / 3)
        drawn = found.init(jax.random.key(0), (6, 3))
        np.testing.assert_array_equal(drawn[3], ROW)
        assert np.ptp(drawn[5]) > 0
        assert np.abs(drawn[5]).max() <= np.sqrt(3) * found.table[3:5].std()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "it is empty"),
        ("a.txt", b"the 1 2 3\ncat 1 2\n", "line 2 has fewer than the 3 numbers of the others"),
        ("a.txt", b"the 1.0 2.0\ncat 1.0 2.0 3.0\n", "line 2 has more than the 2 numbers of the others"),
        ("a.txt", b"the 1 2\ncat 1 x\n", "line 2: could not convert string to float"),
        ("a.txt", b"the 1 2\ncat 1 nan\n", "the vector of 'cat' is not finite"),
        ("a.txt", b"3 2\nthe 1 2\ncat 1 2\n", "its first line says 3 words, and it has 2"),
        ("a.txt", b"1 2\nthe 1 2\ncat 1 2\n", "its first line says 1 words, and it has more"),
        ("a.txt", b"2 3\nthe 1 2\ncat 1 2\n", "line 2 has fewer than the 3 numbers"),
        ("a.txt", b"le 1 2\nchat 1 2\n", "of its 2 words train has none"),
        ("a.bin", b"the 1 2\n", "begins with its number of words and the size of a vector"),
        ("a.bin", b"2 3\nthe " + ROW.tobytes() + b"\ncat " + ROW[:2].tobytes(), "it ends in word 2 of 2"),
        ("a.bin", b"1 2\nthe " + ROW.tobytes(), "there is more behind its 1 words of 2 numbers"),
        ("a.bin", b"2 999999\nthe " + ROW.tobytes(), "vectors of 999,999 numbers"),
        ("a.gz", b"\x1f\x8b", "is packed; unpack it first"),
    ],
)  # fmt: skip
def test_bad_vectors_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_vectors(str(tmp_path / name), WORDS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_vectors_of_another_size_are_refused_and_their_share_is_said(tmp_path):
    (tmp_path / "vectors.txt").write_text("fine 1 2 3\nawful -1 -2 -3\n")
    changes, told = {"text__embeddings": str(tmp_path / "vectors.txt")}, []
    with pytest.raises(UserError, match=r"text\.embedding_size=8, and the vectors of .* have 3 numbers; set it"):
        build(text_config(reviews(tmp_path), **changes))
    run, feed = build(
        text_config(reviews(tmp_path), **changes, text__embedding_size=None),
        progress=lambda *what: told.append(what[0]),
    )
    feed.close()
    assert any("2 vectors of 3 numbers, for 2 of the vocabulary's 22 words, 9.1%" in line for line in told), told
    assert run.data_facts()["vectors"] == {"size": 3, "found": round(2 / 22, 6)}
    with pytest.raises(UserError, match="cannot be read: No such file"):
        build(text_config(reviews(tmp_path), text__embeddings=str(tmp_path / "none.txt")))


# ---- runs


@pytest.fixture(scope="module")
def review_run(tmp_path_factory) -> Path:
    """A run that has finished."""
    folder = tmp_path_factory.mktemp("reviews")
    train(text_config(reviews(folder), num_steps=40, checkpoint__every_steps=20), folder / "run")
    return folder


def test_a_run_is_evaluated_with_its_classes(review_run, capsys):
    from jaxcnn import evaluate

    workdir = review_run / "run"
    assert evaluate.main(["evaluate", "--workdir", str(workdir), "--split=train", "--resamples=50"], 0.0) == 0
    said = json.loads((workdir / "evaluation-train.json").read_text())
    matrix = np.array(said["confusion_matrix"])
    assert matrix.sum() == said["num_examples"] == 48
    assert np.trace(matrix) / 48 > 0.9
    assert said["scores"]["accuracy"] == pytest.approx(np.trace(matrix) / 48, abs=1e-6)
    np.testing.assert_allclose(said["classes"]["recall"], np.diag(matrix) / matrix.sum(axis=1), rtol=1e-5)
    low, high = said["intervals"]["accuracy"]
    assert low <= said["scores"]["accuracy"] <= high
    assert {"macro_roc_auc", "ece", "nll"} <= said["scores"].keys()
    shown = capsys.readouterr().out
    assert "matthews" in shown
    assert "recall" in shown
    header = (workdir / "predictions-train.csv").read_text().splitlines()[0]
    assert header == "index,identifier,label,prediction,confidence,correct,p_bad,p_good"


def test_a_run_predicts_texts_and_files(review_run, capsys):
    from jaxcnn import predict

    file, out = review_run / "new.csv", review_run / "out.csv"
    file.write_text("other,text\n1,w1 fine w2\n2,\n3,w1 awful\n4,a\0b\n")
    argv = ["predict", "--workdir", str(review_run / "run")]
    assert predict.main([*argv, str(file), "--csv", str(out)], 0.0) == 1
    lines = [line.split(",") for line in out.read_text().splitlines()]
    assert [line[:2] for line in lines] == [["line", "class"], ["2", "good"], ["4", "bad"]]
    said = capsys.readouterr().err
    assert f"{file}, line 3: it is empty" in said
    assert f"{file}, line 5: it has a NUL byte" in said
    (review_run / "one.txt").write_text("w3 awful\nw4\n")
    assert predict.main([*argv, str(review_run / "one.txt"), "w7 fine w1", "--top_k=2", "--csv", str(out)], 0.0) == 0
    lines = [line.split(",") for line in out.read_text().splitlines()]
    assert lines[0] == ["path", "class", "confidence", "class_2", "confidence_2"]
    assert [line[1] for line in lines[1:]] == ["bad", "good"]
    with pytest.raises(
        UserError, match=r"there is no file 'nowhere\.txt'; give a \.txt or CSV file, or a text of several"
    ):
        predict.main([*argv, "nowhere.txt"], 0.0)
    file.write_text("other\n1\n")
    with pytest.raises(UserError, match="has no column 'text'"):
        predict.main([*argv, str(file)], 0.0)


def test_a_run_is_diagnosed_and_reported(review_run):
    from jaxcnn import diagnose as command
    from jaxcnn.report import __main__ as report

    workdir = str(review_run / "run")
    assert command.main(["diagnose", "--workdir", workdir, "--json", str(review_run / "found.json")], 0.0) == 0
    assert report.main(["report", "--workdir", workdir, "--output", str(review_run / "page")], 0.0) == 0
    page = (review_run / "page" / "report.html").read_text()
    assert "could not be made" not in page.lower()
    assert "validation accuracy" in page
    assert {"confusion_matrix.png"} <= {each.name for each in (review_run / "page" / "report").iterdir()}
    for said in ("95 % interval", "Confusion matrix: a row is what texts are", "surest of"):
        assert said in page, said


def test_the_report_shades_the_words_that_decide(review_run):
    from types import SimpleNamespace

    from jaxcnn.report.files import read_runs
    from jaxcnn.report.from_texts import _Sections

    (run,) = read_runs([str(review_run / "run")])
    sections = _Sections(run, SimpleNamespace(step="best", split="test", data_dir=None), lambda *_: None)
    text = sections.vocabulary.encode("w1 fine w2")
    tokens = np.zeros(sections.evaluation.source.example["tokens"].shape, np.int32)
    tokens[: len(text)] = text

    def log_probability(row: np.ndarray) -> np.ndarray:
        logits = sections.finished.outputs(sections.finished.variables, {"tokens": row[None]})
        return np.asarray(jax.nn.log_softmax(logits))[0]

    whole, falls = log_probability(tokens), []
    for place in range(len(text)):
        without = tokens.copy()
        without[place] = sections.vocabulary.unknown
        falls.append(whole.max() - log_probability(without)[whole.argmax()])
    weighed = sections._weighed(tokens)
    assert [piece.strip() for piece, _ in weighed] == ["w1", "fine", "w2"]
    np.testing.assert_allclose([shade for _, shade in weighed], falls / np.abs(falls).max(), atol=1e-4)


def test_what_the_vocabulary_and_the_vectors_leave_out_is_found(review_run):
    facts = read_facts(epath.Path(review_run / "run"))
    names = lambda facts: {each.name for each in diagnose(facts)}
    wanted = {"vocabulary coverage", "texts are cut", "word vectors"}
    assert not wanted & names(facts)
    text = {"length": 9, "cut": {"train": 5, "test": 0}, "known": {"train": 0.95, "validation": 0.85}}
    data = {**facts.data, "text": text, "vectors": {"size": 3, "found": 0.2}}
    found = {each.name: each for each in diagnose(type(facts)(**{**vars_of(facts), "data": data}))}
    assert wanted <= found.keys()
    assert "15.0% of validation's tokens" in found["vocabulary coverage"].sentence
    assert "--config.text.max_length=512" in found["texts are cut"].remedies


def vars_of(facts: Any) -> dict[str, Any]:
    import dataclasses

    return {each.name: getattr(facts, each.name) for each in dataclasses.fields(facts)}


def test_a_damaged_vocabulary_is_one_line(review_run, tmp_path):
    from jaxcnn.results.finished import load

    saved = json.loads((review_run / "run" / "config.json").read_text())
    for vocabulary in (None, {"level": "word"}, {"level": "letters", "entries": []}):
        saved["data"]["vocabulary"] = vocabulary
        (tmp_path / "config.json").write_text(json.dumps(saved))
        with pytest.raises(UserError, match="vocabulary") as error:
            load(str(tmp_path))
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_streamed_and_resident_learn_alike_and_a_run_goes_on(tmp_path):
    """Of a run that dropout acts in; eight devices, and pmap, too: bit for bit on the same, to rounding on others."""
    make = partial(text_config, reviews(tmp_path), model__name="text_lstm", num_devices=1)
    config = make()
    train(config, tmp_path / "whole")
    train(make(data__resident=False), tmp_path / "streamed")
    assert_same_arrays(arrays(tmp_path / "whole", config), arrays(tmp_path / "streamed", make(data__resident=False)))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / str(step))
    train(config, tmp_path / "resumed")
    assert_same_arrays(arrays(tmp_path / "whole", config), arrays(tmp_path / "resumed", config))
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "resumed" / "metrics.jsonl").read_bytes()
    for name, other in (("jit", make(num_devices=8)), ("pmap", make(num_devices=8, parallel="pmap"))):
        train(other, tmp_path / name)
        one, eight = (
            arrays(tmp_path / folder, each, 4)["state/params/head/kernel"]
            for folder, each in (("whole", config), (name, other))
        )
        np.testing.assert_allclose(one, eight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_begins_with_a_language_models_weights_and_vocabulary(tied, tmp_path):
    """The head is new, for classes; and the run that it began with may go once it has begun."""
    first = language_config(text_of(tmp_path), language__level="word", model__tied=tied)
    begin(first, tmp_path / "old")
    (tmp_path / "other.csv").write_text("text,label\n" + "the cat new,a\nthe dog ran,b\non a mat,c\n" * 10)
    config = text_config(
        f"csv:{tmp_path / 'other.csv'}", model__name="text_lstm", init_from=str(tmp_path / "old"), init_head="new",
        num_steps=4, finetune__unfreeze_epochs=(0.5,), finetune__layer_decay=0.5,
    )  # fmt: skip
    run, feed = build(config)
    feed.close()
    vocabulary = run.data_facts()["vocabulary"]
    assert vocabulary == read_config(epath.Path(tmp_path / "old"))["data"]["language"]["vocabulary"]
    assert "new" not in vocabulary["entries"]
    params, old = run.init().params, arrays(tmp_path / "old", first, 1)
    embedding, hidden = params["embedding"]["embedding"], params["recurrent"]["layer1"]["hidden"]["kernel"]
    np.testing.assert_array_equal(embedding, old["state/params/embedding/embedding"])
    np.testing.assert_array_equal(hidden, old["state/params/recurrent/layer1/hidden/kernel"])
    assert params["head"]["bias"].shape == (3,)
    with pytest.raises(UserError, match=r"text\.level=byte, and the vocabulary of .* set text\.level=word"):
        build(text_config(config.data.name, init_from=str(tmp_path / "old"), text__level="byte"))
    train(config, tmp_path / "new")
    shutil.rmtree(tmp_path / "old")
    again, feed = build(config, facts=read_config(epath.Path(tmp_path / "new"))["data"])
    feed.close()
    assert again.data_facts()["vocabulary"] == vocabulary


def test_configs_of_before_load():
    old = to_dict(Config())
    del old["text"], old["model"]["features"], old["model"]["bidirectional"]
    assert from_dict(old) == Config()
