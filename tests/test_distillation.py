"""Distillation: the loss by hand, what the teacher sees, and that it changes nothing of resume, modes and devices."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

import jaxcnn
from jaxcnn.config import Config, DistillConfig, changed_fields, validate
from jaxcnn.errors import Preempted, UserError
from jaxcnn.machine import versions
from jaxcnn.run import workdir
from jaxcnn.tasks.classification.distillation import Taught, distillation
from jaxcnn.tasks.classification.losses import make_loss
from jaxcnn.tasks.task import CONSTANTS
from jaxcnn.training.build import build
from jaxcnn.training.feed import ResidentFeed
from jaxcnn.training.preview import step_cost
from jaxcnn.training.step import example_keys
from jaxcnn.training.whole_run import Hyperparameters, pieces_of, train_in_chunks
from jaxcnn.transfer.__main__ import main as transfer
from tests.runs import arrays, assert_same_arrays, rows, small_config, train
from tests.test_loop import stop_at  # noqa: F401

MIXED = {"augment__crop_padding": 1, "augment__mixup": 0.3, "augment__cutmix": 1.0}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of another seed, whose images were normalised by other numbers."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    train(small_config(seed=7, num_steps=4, data__mean=(0.2,), data__std=(0.3,)), folder)
    return folder


@pytest.fixture
def config_of(teacher):
    return lambda **changes: small_config(**{"distill__teacher": str(teacher), **changes})


def random_logits(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32))


def constants(run):
    assert run.task.constants is not None
    return run.task.constants


# ---- the loss


def test_the_loss_by_hand():
    student, teacher = (np.asarray(random_logits(seed, 5, 4), np.float64) for seed in (0, 1))
    softened = [np.exp(each / 2.5) / np.exp(each / 2.5).sum(axis=1, keepdims=True) for each in (student, teacher)]
    by_hand = 2.5**2 * (softened[1] * np.log(softened[1] / softened[0])).sum(axis=1)
    found = distillation(jnp.asarray(student), jnp.asarray(teacher), temperature=2.5)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    np.testing.assert_allclose(distillation(jnp.asarray(teacher), jnp.asarray(teacher), temperature=2.5), 0, atol=1e-5)


def test_in_the_limit_of_high_temperatures_logits_are_matched():
    """Hinton et al. 2015, eq. 4: with T^2, the gradient of zero-meaned logits z is (z - v) / K."""
    student, teacher = (each - each.mean(axis=1, keepdims=True) for each in map(random_logits, (0, 1), (5, 5), (4, 4)))
    gradient = jax.grad(lambda logits: distillation(logits, teacher, temperature=100.0).sum())(student)
    np.testing.assert_allclose(gradient, (student - teacher) / 4, rtol=0.1, atol=0.05)


def test_alpha_is_the_teachers_part(config_of):
    student, teacher, labels = random_logits(0, 5, 10), random_logits(1, 5, 10), jnp.arange(5)
    of_labels = optax.losses.softmax_cross_entropy_with_integer_labels(student, labels)
    of_teacher = distillation(student, teacher, temperature=3.0)
    for alpha in (0.25, 1.0):
        run, feed = build(config_of(distill__alpha=alpha, distill__temperature=3.0))
        feed.close()
        found = run.learning.losses.train(student, Taught(labels, teacher))
        np.testing.assert_allclose(found, alpha * of_teacher + (1 - alpha) * of_labels, rtol=1e-5)
        np.testing.assert_array_equal(
            run.learning.losses.evaluate(student, labels), make_loss(run.config.loss)(student, labels)
        )
        with pytest.raises(TypeError, match="constants"):  # never silently without it
            run.learning.losses.train(student, labels)


# ---- what the teacher sees


def first_targets(config):
    """Of step 0: images, targets, and the batch."""
    run, feed = build(config)
    batch = {**feed.batch(0), **feed.beside}
    keys = example_keys(jax.random.key(config.seed), 0, jnp.arange(config.batch_size))
    images, targets = run.learning.prepare(jax.random.key(config.seed), keys, batch)
    feed.close()
    return run, images, targets, batch


def test_it_sees_the_students_augmented_and_mixed_images(config_of, teacher):
    run, images, targets, batch = first_targets(config_of(**MIXED))
    assert targets.labels.shape == (48, 10)  # mixed
    trained = jaxcnn.load(str(teacher))
    levels = (images * np.float32(run.facts["std"]) + np.float32(run.facts["mean"])) * 255
    normalised = (levels / 255 - np.float32(trained.mean)) / np.float32(trained.std)
    expected = trained.module.apply(trained.variables, normalised, train=False)
    np.testing.assert_allclose(targets.logits, expected, rtol=1e-4, atol=1e-4)
    plain = trained.logits_of(trained.variables, jnp.asarray(batch["image"]))
    assert np.abs(targets.logits - plain).max() > 0.1  # they are not those of the images as stored


@pytest.mark.parametrize("resident", [True, False])
def test_without_augmentation_it_answers_as_the_loaded_run(config_of, teacher, resident):
    """Once for each image where the set lives on the device, else at each step."""
    run, _, targets, batch = first_targets(config_of(data__resident=resident, data__num_workers=0))
    assert batch[CONSTANTS].keys() == ({"logits"} if resident else {"variables"})
    trained = jaxcnn.load(str(teacher))
    expected = trained.logits_of(trained.variables, jnp.asarray(batch["image"]))
    np.testing.assert_allclose(targets.logits, expected, rtol=1e-4, atol=1e-4)
    assert constants(run).words().endswith("once for each image" if resident else "at each step")


def test_classes_are_matched_by_name(config_of, teacher):
    backwards = tuple(str(number) for number in reversed(range(10)))
    _, _, targets, batch = first_targets(config_of(data__classes=backwards))
    trained = jaxcnn.load(str(teacher))
    expected = trained.logits_of(trained.variables, jnp.asarray(batch["image"]))
    np.testing.assert_allclose(targets.logits, expected[:, ::-1], rtol=1e-4, atol=1e-4)


def test_weights_are_a_teacher_too(teacher, tmp_path, config_of, capsys):
    file = tmp_path / "weights.safetensors"
    assert transfer(["transfer", "export", "--workdir", str(teacher), "--to", "jaxcnn", str(file)], 0.0) == 0
    weights = {"distill__teacher": str(file), "distill__model": "tiny"}
    for normalised in ({}, {"distill__mean": (0.2,), "distill__std": (0.3,)}):
        _, images, targets, batch = first_targets(config_of(**weights, **normalised))
        trained = jaxcnn.load(str(teacher))
        as_trained = trained.logits_of(trained.variables, jnp.asarray(batch["image"]))
        as_the_student = trained.module.apply(trained.variables, images, train=False)
        np.testing.assert_allclose(targets.logits, as_trained if normalised else as_the_student, rtol=1e-4, atol=1e-4)


# ---- the run


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """A run of eight steps, taught, that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(small_config(distill__teacher=str(teacher), **MIXED), folder)


def test_killed_and_resumed_is_never_killed(tmp_path, whole, config_of, stop_at):  # noqa: F811
    """Bit for bit; and no array of the teacher's is in a checkpoint."""
    config = config_of(**MIXED)
    stop_at(3)
    with pytest.raises(Preempted):
        train(config, tmp_path)
    result = train(config, tmp_path)
    found = arrays(tmp_path, config)
    assert_same_arrays(found, arrays(whole[0], config))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    assert result["splits"] == whole[1]["splits"]
    train(small_config(num_steps=2, **MIXED), tmp_path / "alone")
    assert found.keys() == arrays(tmp_path / "alone", small_config(num_steps=2, **MIXED)).keys()


@functools.cache
def losses(teacher, *, steps=4, **changes):
    """Train losses of some steps, each call fetched alone."""
    common = {"model__dropout_rate": 0.0, "optimizer__accumulate": 2, "distill__teacher": str(teacher)}
    run, feed = build(small_config(num_steps=steps, **common, **changes))
    parallel = run.parallel
    state, key, data = parallel.replicate(run.init()), parallel.replicate(jax.random.key(0)), feed.data()
    found = []
    for step in range(steps):
        totals = parallel.replicate(run.learning.metrics.empty())
        state, totals, _ = run.calls.train_call(state, totals, data, feed.inputs(step, 1), key)
        found.append(float(parallel.unreplicate(totals).compute()["loss"]))
    feed.close()
    return np.array(found)


@pytest.mark.parametrize(
    ("mode", "num_devices", "changes"),
    [
        ("jit", 8, MIXED),
        ("pmap", 8, {}),
        *(pytest.param("pmap", count, MIXED, marks=pytest.mark.slow) for count in (1, 8)),
    ],
)
def test_modes_and_device_counts_agree(teacher, mode, num_devices, changes):
    """Also where it answers once for each image; the gradient is of the student alone, so its losses fall alike."""
    found = losses(teacher, parallel=mode, num_devices=num_devices, **changes)
    np.testing.assert_allclose(found, losses(teacher, num_devices=1, **changes), rtol=1e-4)


@pytest.mark.slow
def test_streamed_is_the_same_run(tmp_path, whole, config_of):
    train(config_of(**MIXED, data__resident=False, data__num_workers=0), tmp_path)
    for split in ("train", "validation"):
        for a, b in zip(rows(tmp_path, split), rows(whole[0], split), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.slow
def test_the_whole_run_as_one_program_is_the_same(tmp_path, config_of):
    config = config_of(model__dropout_rate=0.0, log_every_steps=1, num_devices=1, optimizer__ema_decay=None)
    train(config, tmp_path)
    run, feed = build(config)
    assert isinstance(feed, ResidentFeed)
    chunks = train_in_chunks(run, feed, Hyperparameters(), num_steps=8, pieces=pieces_of(run), splits=("train",))
    ((_, curves),) = chunks
    np.testing.assert_allclose(curves["train"]["loss"], [row["loss"] for row in rows(tmp_path)], rtol=1e-4)


def test_metrics_are_of_the_labels(config_of):
    """Of a student that says what its teacher says, and labels that differ, mixed or not."""
    run, feed = build(config_of())
    feed.close()
    logits, labels = random_logits(1, 48, 10), jnp.arange(48) % 10
    expected = (logits.argmax(axis=1) == labels).mean()
    for each in (labels, jax.nn.one_hot(labels, 10)):
        values = run.learning.metrics.of_examples(logits, Taught(each, logits), jnp.zeros(48))
        assert values["accuracy"].mean() == expected < 0.5


def test_the_run_says_who_taught_it(whole):
    saved = json.loads((whole[0] / "config.json").read_text())
    assert saved["teacher"].keys() == {"source", "sha256", "model"}
    assert len(saved["teacher"]["sha256"]) == 64
    assert saved["config"]["distill"]["temperature"] == 4.0


def test_another_teacher_in_its_place_is_refused(tmp_path, whole, config_of, teacher):
    moved = tmp_path / "moved"
    shutil.copytree(teacher, moved)
    run, feed = build(config_of(distill__teacher=str(moved), **MIXED))
    feed.close()
    folder = epath.Path(whole[0])
    assert workdir.check(folder, "test", run.config)  # it may have moved
    write = lambda facts: workdir.write_config(
        folder,
        "test",
        run.config,
        run.data_facts(),
        versions(),
        teacher=facts,
        best=run.learning.selections.best.facts(),
    )
    write(constants(run).facts())
    with pytest.raises(UserError, match=r"distill\.teacher=.*moved does not hold what it held when the run in"):
        write({**constants(run).facts(), "sha256": "0" * 64})
    assert changed_fields(run.config, small_config(**MIXED))[0].startswith("distill.teacher (")


def test_evaluating_needs_the_teacher_no_more(tmp_path, teacher, config_of):
    gone = tmp_path / "gone"
    shutil.copytree(teacher, gone)
    train(config_of(distill__teacher=str(gone), num_steps=2), tmp_path / "run")
    shutil.rmtree(gone)
    from jaxcnn.evaluate import main as evaluate

    assert evaluate(["evaluate", "--workdir", str(tmp_path / "run"), "--split", "train"], 0.0) == 0
    assert jaxcnn.load(str(tmp_path / "run")).predict(np.zeros((1, 8, 8, 1), np.uint8)).shape == (1, 10)


def test_a_dry_run_counts_the_teacher(config_of):
    sizes = []
    for config in (small_config(**MIXED), config_of(**MIXED)):
        run, feed = build(config)
        feed.close()
        sizes.append(step_cost(run)[1].arguments)
    like = jax.eval_shape(lambda: constants(run).arrays(run.facts, None))
    of_teacher = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    assert of_teacher <= sizes[1] - sizes[0] < 1.5 * of_teacher + 4096


# ---- what cannot be


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temperature": 2.0}, r"distill\.\* is read with distill\.teacher only"),
        ({"teacher": "x", "alpha": 0.0}, r"distill\.alpha=0\.0 is out of range"),
        ({"teacher": "x", "temperature": 1e3}, r"distill\.temperature=1000\.0 is out of range"),
        ({"teacher": "x", "mean": (0.5,)}, r"set both, or neither"),
    ],
)
def test_options_that_cannot_be_are_one_line(changes, says):
    with pytest.raises(UserError, match=says):
        validate(Config(distill=DistillConfig(**changes)))


def test_it_is_of_single_classes():
    with pytest.raises(UserError, match=r"distill\.teacher=x is read by task=classification only"):
        validate(Config(task="multilabel", distill=DistillConfig(teacher="x")))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"distill__teacher": "/nowhere"}, r"distill\.teacher=/nowhere: there is no such file or folder"),
        ({"distill__model": "resnet18"}, r"distill\.model is for weights without a run"),
        ({"data__classes": (0, 1)}, r"tells 10 classes apart and this run 2, and '2' is of one of them alone"),
        ({"data__image_size": 16}, r"sees images of 8x8x1, and this run's are 16x16x1; set data\.image_size"),
    ],
)
def test_a_teacher_that_does_not_suit_is_one_line(config_of, changes, says):
    run, feed = build(config_of(**changes))
    feed.close()
    with pytest.raises(UserError, match=says):
        constants(run).facts()


def test_weights_that_do_not_suit_are_one_line(config_of, teacher, tmp_path, capsys):
    file = tmp_path / "weights.safetensors"
    transfer(["transfer", "export", "--workdir", str(teacher), "--to", "jaxcnn", str(file)], 0.0)
    for changes, says in (
        ({}, r"is weights, which do not say of which model; set distill\.model"),
        ({"distill__model": "tinny"}, r"distill\.model='tinny' is not known"),
        ({"distill__model": "resnet18"}, r"is no resnet18 of these classes: .* arrays of resnet18 fit$"),
        ({"distill__model": "tiny", "data__classes": (0, 1)}, r"is no tiny of these classes: "),
        (
            {"distill__model": "tiny", "distill__mean": (0.1, 0.2), "distill__std": (0.1, 0.2)},
            r"has 2 values; images have 1 channels",
        ),
    ):
        run, feed = build(config_of(distill__teacher=str(file), **changes))
        feed.close()
        with pytest.raises(UserError, match=says):
            constants(run).facts()
