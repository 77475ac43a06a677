"""Language models: windows and streams of a text, what is carried, the commands, and what is written."""

import itertools
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
from scipy import stats

from jaxcnn import evaluate, generate, predict
from jaxcnn.config import CheckpointConfig, Config, DataConfig, LanguageConfig, ModelConfig, OptimizerConfig
from jaxcnn.data import stream_examples
from jaxcnn.errors import Preempted, UserError
from jaxcnn.models.make import make_model
from jaxcnn.run.facts import read_facts
from jaxcnn.run.log import read_rows
from jaxcnn.tasks.language import open_source
from jaxcnn.tasks.language.generation import Sampling, distribution, draw, sample, search
from jaxcnn.terminal import print_text
from jaxcnn.training.build import build
from jaxcnn.training.feed import ResidentFeed
from jaxcnn.training.whole_run import pieces_of
from tests.runs import arrays, assert_same_arrays, changed, rows, train
from tests.test_loop import stop_at  # noqa: F401

WORDS = ("the", "cat", "sat", "on", "a", "mat", "dog", "ran")


def text_of(folder: Path, count: int = 230, name: str = "a.txt") -> str:
    """A file of so many words, eight a line; the source's name."""
    generator = np.random.default_rng(0)
    words = [WORDS[number] for number in generator.integers(0, len(WORDS), count)]
    lines = [" ".join(words[start : start + 8]) for start in range(0, count, 8)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return f"text:{folder / name}"


def language_config(name: str, **changes: Any) -> Config:
    """An LSTM of 8 units, 12 steps of 8 windows of 8 characters; a key `a__b` sets config.a.b."""
    config = Config(
        task="language",
        num_steps=12,
        batch_size=8,
        log_every_steps=1,
        eval_every_epochs=0.5,
        data=DataConfig(name=name),
        language=LanguageConfig(length=8, context=2),
        model=ModelConfig(name="lstm", features=8),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.01, clip_norm=1.0),
        checkpoint=CheckpointConfig(every_steps=4, keep_last=8),
        tensorboard=False,
    )
    return changed(config, changes)


# ---- windows


@pytest.mark.parametrize("level", ["character", "word", "byte"])
@pytest.mark.parametrize("end", ["file", "line"])
def test_every_token_is_read_once_and_counted_once(tmp_path, level, end):
    text_of(tmp_path, 400)
    (tmp_path / "b.txt").write_text("The dögs ran.\r\n")
    config = language_config(
        f"text:{tmp_path}", batch_size=4, language__level=level, language__end=end, language__eval_length=9
    )
    source = open_source(config)
    vocabulary = source.vocabulary
    pieces = {split: [source.splits[split][i] for i in range(len(source.splits[split]))] for split in source.splits}
    train_tokens = np.concatenate([each["tokens"][1:] for each in pieces["train"]])
    heads = np.array([each["tokens"][0] for each in pieces["train"]])
    np.testing.assert_array_equal(heads[1:], train_tokens[7:-1:8])  # each goes on where the one before has ended
    counted = [np.concatenate([each["tokens"][3:] for each in pieces[split]]) for split in ("validation", "test")]
    held_out = np.concatenate([each[each != 0] for each in counted])
    assert len(held_out) == source.sizes["validation"] + source.sizes["test"]
    text = (tmp_path / "a.txt").read_text()
    both = text + ("The dögs ran.\r\n" if level == "byte" else "The dögs ran.\n")
    decoded = vocabulary.decode(held_out[held_out != vocabulary.end])
    if level != "word":
        expected = both.replace("\n", "") if end == "line" else both
        known = "".join(letter if letter in text or level == "byte" else "�" for letter in expected)
        assert known.endswith(decoded)
        assert len(decoded) > 100
        characters = sum(float(each["characters"]) for split in ("validation", "test") for each in pieces[split])
        assert characters == len(decoded) + (end == "line") * int((held_out == vocabulary.end).sum())
    num_ends = (held_out == vocabulary.end).sum()
    assert num_ends == 2 if end == "file" else num_ends > 3
    assert source.splits["test"].records.identifier(0).startswith("token:")


def test_a_vocabulary_is_of_train_alone(tmp_path):
    (tmp_path / "a.txt").write_text("ab" * 200 + "z" * 40)
    source = open_source(language_config(f"text:{tmp_path}/a.txt", batch_size=2))
    assert source.vocabulary.entries == ("a", "b")
    assert source.unknown["train"] == 0
    assert source.unknown["test"] == pytest.approx(40 / 44, abs=0.01)
    assert source.facts()["language"]["vocabulary"]["entries"] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (b"", {}, "a.txt is empty"),
        (b" \n\n", {}, "a.txt is empty"),
        (b"abc\nd\xffe" * 200, {}, "line 2, is no UTF-8.*iconv.*language.level=byte"),
        (b"abc\nde\0" * 200, {}, "line 2, has a NUL byte.*language.level=byte"),
        (b"abcd" * 10, {}, "has 41 characters, 33 for train.*take 65"),
        (b"a" * 2000, {}, "fewer than 2 kinds of characters"),
        (b"ab" * 2000, {"data__fold": "1/5"}, "data.fold is not for texts"),
        (b"ab" * 2000, {"data__resident": False}, "set data.resident=true"),
    ],
)
def test_a_bad_text_is_one_line(tmp_path, content, changes, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        build(language_config(f"text:{tmp_path}/a.txt", **changes))
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_read_as_bytes_and_a_line_of_a_million_words_as_any(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 20)
    source = open_source(language_config(f"text:{tmp_path}/a.bin", language__level="byte"))
    assert source.sizes["train"] + source.sizes["validation"] + source.sizes["test"] == 256 * 20 + 1
    (tmp_path / "long.txt").write_text("word " * 100_000 + "other " * 100_000)
    source = open_source(language_config(f"text:{tmp_path}/long.txt", language__level="word"))
    assert source.sizes["train"] == 162_001


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__name": "a.txt"}, "did you mean text:a.txt"),
        ({"data__name": "text:missing.txt"}, "there is no 'missing.txt'"),
        ({"language__context": 8}, "language.context=8 leaves nothing"),
        ({"model__name": "transformer", "language__eval_length": 9}, "beyond language.length=8"),
        (
            {"model__name": "cnn", "model__features": None},
            "model.name=cnn is not for task=language; choose one of: rnn",
        ),
        ({"augment__flip": True}, "augment.flip=True is read by"),
    ],
)
def test_what_does_not_suit_a_text_is_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        build(language_config(text_of(tmp_path), **changes))


def test_a_language_model_is_not_for_images():
    with pytest.raises(UserError, match=r"model.name=lstm is for task=language"):
        make_model(ModelConfig(name="lstm"), num_classes=10)


# ---- streams, and what is carried


def test_streams_hold_every_example_once_and_row_b_goes_on():
    read = [stream_examples(step, num_examples=24, batch_size=4) for step in range(12)]
    index = np.stack([each for each, _ in read])
    for epoch in (index[:6], index[6:]):
        assert sorted(epoch.ravel()) == list(range(24))
        assert (np.diff(epoch, axis=0) == 1).all()
    assert [int(epoch[0]) for _, epoch in read] == [0] * 6 + [1] * 6


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_carried_is_what_the_network_has_read(tmp_path, accumulate):
    """At a rate of nothing the weights stay: row b has read its stream from the beginning; at its end anew."""
    config = language_config(
        text_of(tmp_path), optimizer__name="sgd", optimizer__learning_rate=1e-30, optimizer__accumulate=accumulate,
        num_devices=2, model__layers=2,
    )  # fmt: skip
    run, feed = build(config)
    assert isinstance(feed, ResidentFeed)
    length = run.learning.stream_steps or 0
    assert 2 < length < 12
    windows = feed.arrays("train")[0]["tokens"]
    parallel, state = run.parallel, jax.device_get(run.init())
    zeros: Any = run.learning.model.begin(8)
    jax.tree.map(np.testing.assert_array_equal, state.carried, zeros)
    params, totals = state.params, run.learning.metrics.empty()
    state, totals, key = parallel.replicate(state), parallel.replicate(totals), parallel.replicate(jax.random.key(0))
    for step in range(length + 1):
        state, totals, _ = run.calls.train_call(state, totals, feed.data(), feed.inputs(step, 1), key)
        if step in (0, 2, length):
            first = 0 if step < length else length
            streams = windows.reshape(8, length, 9)[:, : step + 1 - first, :-1].reshape(8, -1)
            apply = jax.jit(partial(run.learning.model.apply, train=False))
            _, expected = apply({"params": params}, streams, carry=zeros)
            found = parallel.unreplicate(state).carried
            jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, expected)
        if step == length - 1:
            jax.tree.map(np.testing.assert_array_equal, parallel.unreplicate(state).carried, zeros)


def test_killed_and_resumed_is_never_killed(tmp_path, stop_at):  # noqa: F811
    """Bit for bit, with what is carried, in the middle of the streams."""
    config = language_config(text_of(tmp_path), num_devices=1, model__dropout_rate=0.2, optimizer__ema_decay=0.9)
    train(config, tmp_path / "whole")
    stop_at(6)
    with pytest.raises(Preempted):
        train(config, tmp_path / "killed")
    train(config, tmp_path / "killed")
    whole = arrays(tmp_path / "whole", config)
    carried = [name for name in whole if name.startswith("state/carried")]
    assert carried
    assert all(whole[name].any() for name in carried)
    assert not [name for name in whole if "ema" in name and "carried" in name]
    assert_same_arrays(whole, arrays(tmp_path / "killed", config))
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    samples = read_rows(tmp_path / "whole" / "samples.jsonl")
    assert [each["step"] for each in samples] == [each["step"] for each in rows(tmp_path / "whole", "validation")]
    assert all(each["text"] for each in samples)


def test_one_device_and_eight_agree(tmp_path):
    """By jit, and by pmap."""
    name = text_of(tmp_path)
    config = partial(language_config, name, eval_every_epochs=1.0, model__dropout_rate=0.2)
    train(config(num_devices=1), tmp_path / "one")
    for mode in ("jit", "pmap"):
        train(config(num_devices=8, parallel=mode), tmp_path / mode)
        for split in ("train", "validation"):
            for a, b in zip(rows(tmp_path / "one", split), rows(tmp_path / mode, split), strict=True):
                assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
                assert a["bits_per_character"] == pytest.approx(b["bits_per_character"], rel=1e-4)


def test_a_transformer_is_shuffled_and_carries_nothing(tmp_path):
    run, feed = build(language_config(text_of(tmp_path), model__name="transformer", model__layers=1))
    assert run.learning.stream_steps is None
    assert run.abstract_state().carried is None
    index = [feed.batch(step)["index"].tolist() for step in range(3)]
    assert index[0] != sorted(index[0])


def test_streams_are_not_for_a_whole_run_in_one_program(tmp_path):
    run, _ = build(language_config(text_of(tmp_path)))
    with pytest.raises(UserError, match="reads streams"):
        pieces_of(run)


# ---- the commands


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A trained run of its own."""
    folder = tmp_path_factory.mktemp("language")
    config = language_config(
        text_of(folder, 600), num_steps=60, model__features=16, optimizer__learning_rate=0.03, num_devices=1,
        eval_every_epochs=1.0, checkpoint__every_steps=60, language__end="line", model__tied=True,
        model__layer_norm=True, telemetry__every_steps=20,
    )  # fmt: skip
    train(config, folder / "run")
    return folder


def test_a_run_is_evaluated_with_intervals_and_predicts(run, monkeypatch, capsys):
    import json

    assert evaluate.main(["evaluate", "--workdir", str(run / "run"), "--resamples=50"], 0.0) == 0
    found = json.loads((run / "run" / "evaluation.json").read_text())
    scores = found["scores"]
    assert scores["bits_per_character"] < 2.5
    assert scores["perplexity"] == pytest.approx(2 ** scores["bits_per_character"], rel=1e-4)  # a character a token
    low, high = found["intervals"]["bits_per_character"]
    assert low < scores["bits_per_character"] < high
    lines = (run / "run" / "predictions.csv").read_text().splitlines()
    assert lines[0] == "index,identifier,tokens,characters,bits_per_character,perplexity,accuracy"
    assert evaluate.main(["evaluate", "--workdir", str(run / "run"), "--resamples=0", "--batch_size=3"], 0.0) == 0
    again = json.loads((run / "run" / "evaluation.json").read_text())["scores"]
    assert again["bits_per_character"] == pytest.approx(scores["bits_per_character"], rel=1e-5)
    (run / "lines.txt").write_text("the cat\nqqq\n\n")
    out = run / "out.csv"
    assert predict.main(["predict", "--workdir", str(run / "run"), str(run / "lines.txt"), "--csv", str(out)], 0.0) == 0
    likely, odd = [line.split(",") for line in out.read_text().splitlines()[1:]]
    assert likely[:3] == ["1", "1", "7"]
    assert float(likely[-1]) < float(odd[-1])


def test_a_run_is_diagnosed_and_reported(run):
    from jaxcnn import diagnose
    from jaxcnn.report import __main__ as report

    workdir = str(run / "run")
    assert diagnose.main(["diagnose", "--workdir", workdir, "--json", str(run / "found.json")], 0.0) == 0
    assert report.main(["report", "--workdir", workdir, "--output", str(run / "page")], 0.0) == 0
    page = (run / "page" / "report.html").read_text()
    assert not read_facts(epath.Path(run / "run")).has_accuracy  # of classes: what half of the tokens may be well
    assert "could not be made" not in page.lower()
    for said in ("bits_per_character", "95 % interval", "Temperature 0.5:", "Passages as the network read them"):
        assert said in page, said


def written(run: Path, capsys: Any, *options: str) -> str:
    capsys.readouterr()
    assert generate.main(["generate", "--workdir", str(run / "run"), *options], 0.0) == 0
    return str(capsys.readouterr().out)


def test_text_is_written_the_same_for_a_seed(run, capsys):
    one = written(run, capsys, "--prompt=the c", "--length=90", "--seed=1")
    assert one.startswith("the c")
    assert one != written(run, capsys, "--prompt=the c", "--length=90", "--seed=2")
    several = written(run, capsys, "--prompt=the c", "--length=90", "--seed=1", "--num=2").split("--- ")
    assert several[1] == f"1\n{one}"
    greedy = written(run, capsys, "--prompt=the c", "--length=20", "--temperature=0")
    assert greedy == written(run, capsys, "--prompt=the c", "--length=20", "--top_k=1", "--seed=5")
    beams = written(run, capsys, "--prompt=the c", "--beam=3", "--num=2", "--length=10").split("--- ")
    assert len(beams) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beam=2", "--seed=1"], "--seed is for drawing"),
        (["--beam=2", "--num=3"], "--beam=2 finds no more than 2"),
        (["--temperature=-1"], "temperature"),
        (["--step=7"], "step"),
        (["--top_p=0"], "top_p"),
    ],
)
def test_what_generate_cannot_do_is_one_line(run, options, message):
    with pytest.raises(UserError, match=message):
        generate.main(["generate", "--workdir", str(run / "run"), *options], 0.0)


def test_generate_wants_a_language_models_run(run, tmp_path):
    with pytest.raises(UserError, match="no run given"):
        generate.main(["generate"], 0.0)
    shutil.copytree(run / "run", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    file = tmp_path / "run" / "config.json"
    file.write_text(file.read_text().replace('"level": "character", "entries"', '"level": "rune", "entries"'))
    with pytest.raises(UserError):
        generate.main(["generate", "--workdir", str(tmp_path / "run")], 0.0)


def test_controls_are_written_out_on_a_terminal(monkeypatch, capsys):
    print_text("a\x1b[2J\n")
    assert capsys.readouterr().out == "a\x1b[2J\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    print_text("a\x1b[2J\n")
    assert capsys.readouterr().out == "a\\x1b[2J\n"


# ---- writing


def chain(size: int = 6, seed: int = 0) -> Any:
    """A model whose next token depends on the last two; it carries the one before."""
    table = jax.random.normal(jax.random.key(seed), (size, size, size)) * 2

    def model(tokens, carry):
        before = jnp.concatenate([carry[:, None], tokens[:, :-1]], axis=1)
        return table[before, tokens], tokens[:, -1]

    return model, table


def test_beam_search_is_brute_force():
    """With as many beams as there are beginnings: all texts of up to 4 tokens, which may end before."""
    model, table = chain()
    length, prompt, allowed = 4, [3, 4], [2, 3, 4, 5]
    logs = np.asarray(jax.nn.log_softmax(table.at[..., :2].set(-jnp.inf)))
    everything = {}
    for text in itertools.product(allowed, repeat=length):
        text = text[: text.index(2) + 1] if 2 in text else text
        score, before, last = 0.0, *prompt
        for token in text:
            score, before, last = score + float(logs[before, last, token]), last, token
        everything[text] = score
    best = sorted(everything, key=lambda text: -everything[text])[:10]
    call = jax.jit(partial(search, model=model, num_tokens=length), static_argnames="beams")
    found = call(jnp.array(prompt), jnp.zeros(64, jnp.int32), beams=64)
    texts = [tuple(int(token) for token in each if token) for each in found.tokens[:10]]
    assert len(set(texts)) == 10
    for scores in ([everything[text] for text in texts], [everything[text] for text in best]):
        np.testing.assert_allclose(found.scores[:10], scores, atol=1e-4)
    narrow = call(jnp.array(prompt), jnp.zeros(2, jnp.int32), beams=2)
    assert float(narrow.scores[0]) <= everything[best[0]] + 1e-4


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.5), Sampling(2.0, top_k=3), Sampling(1.0, top_p=0.8), Sampling(1.5, 4, 0.9)]
)
def test_sampling_passes_a_chi_squared_test(sampling):
    logits = jnp.array([9.0, 9.0, 0.3, 1.0, -0.5, 0.8, 0.0])
    count = 20_000
    tokens = np.asarray(draw(jnp.tile(logits, (count, 1)), jax.random.key(0), sampling))
    shares = np.exp(np.asarray(logits, np.float64) / sampling.temperature)
    shares[:2] = 0  # never written
    order = np.argsort(-shares)
    if sampling.top_k is not None:
        shares[order[sampling.top_k :]] = 0
    shares /= shares.sum()
    if sampling.top_p is not None:
        within = np.cumsum(shares[order])
        shares[order[np.searchsorted(within, sampling.top_p) + 1 :]] = 0
    shares /= shares.sum()
    observed = np.bincount(tokens, minlength=7)
    assert not observed[shares == 0].any()
    kept = shares > 0
    assert stats.chisquare(observed[kept], count * shares[kept]).pvalue > 0.001
    wrong = shares[kept][::-1]  # such a test fails where the shares are others
    assert stats.chisquare(observed[kept], count * wrong).pvalue < 0.001


def test_of_equals_so_many_are_kept():
    ranked, order = distribution(jnp.zeros((1, 7)), Sampling(top_k=2))
    assert order[0, :2].tolist() == [2, 3]
    assert jnp.isfinite(ranked[0]).tolist() == [True] * 2 + [False] * 5


def test_a_text_stops_at_its_end():
    model = lambda tokens, carry: (jnp.zeros((*tokens.shape, 4)).at[..., 2].set(1e9 * (carry > 3)), carry + 1)
    pieces = list(
        sample(
            model, np.array([3]), begun=lambda num: jnp.zeros((num, 1)), key=jax.random.key(0),
            sampling=Sampling(), num=3, num_tokens=1000,
        )
    )  # fmt: skip
    assert len(pieces) == 1
    for text in pieces[0]:
        end = text.tolist().index(2)
        assert not text[end + 1 :].any()


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_token_by_token_is_the_whole_text(name):
    module: Any = make_model(ModelConfig(name=name, features=8, layers=2), num_classes=9, vocabulary=9, length=12)
    tokens = jax.random.randint(jax.random.key(0), (2, 12), 0, 9)
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(1), tokens)
    apply: Any = jax.jit(partial(module.apply, train=False))
    whole = apply(variables, tokens)
    carry: Any = module.begin(2)
    pieces: list[Any] = []
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        logits, carry = apply(variables, tokens[:, start:stop], carry=carry)
        pieces.append(logits)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, atol=1e-5)


def test_a_transformer_writes_beyond_its_window():
    module = make_model(ModelConfig(name="transformer", features=8, layers=1), num_classes=9, vocabulary=9, length=16)
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))
    model = lambda tokens, carry: module.apply(variables, tokens, train=False, carry=carry)
    pieces = sample(
        model, np.arange(30) % 9, begun=module.begin, key=jax.random.key(0), sampling=Sampling(), num=1,
        num_tokens=50, window=16,
    )  # fmt: skip
    text = np.concatenate([*pieces], axis=1)[0]
    assert len(text) == 50 or text[-1] in (0, 2)
    assert not set(text.tolist()) & {1}
