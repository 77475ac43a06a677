"""Checkpoints: what comes back is what was saved, or is reported."""

import contextlib
import resource
from pathlib import Path

import numpy as np
import pytest
import tensorstore

from jaxcnn.errors import RunError
from jaxcnn.run.checkpoint import Checkpoints, DamagedError, checksum, flatten, unflatten


def tree(seed=0):
    generator = np.random.default_rng(seed)
    return {
        "state": {
            "kernel": generator.normal(size=(3, 3, 16, 32)).astype(np.float32),
            "step": np.array(seed, np.int32),
            "nothing": None,
            "empty": {},
        },
        "list": [generator.normal(size=7).astype(np.float32)],
    }


@pytest.fixture
def opened(tmp_path):
    with contextlib.ExitStack() as stack:

        def open_(**options):
            checkpoints = Checkpoints(tmp_path / "checkpoints", **options)
            stack.callback(checkpoints.close)
            return checkpoints

        yield open_


def files(folder: Path) -> list[Path]:
    """The array files of a checkpoint, the largest last."""
    return sorted((path for path in folder.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_round_trip(opened, asynchronous):
    checkpoints = opened(asynchronous=asynchronous)
    checkpoints.save(3, tree(3), {"best": 0.5}, {"accuracy": 0.5})
    checkpoints.wait()
    step, restored, extra = opened().restore_newest(tree())
    assert (step, extra) == (3, {"best": 0.5})
    for name, array in flatten(tree(3)).items():
        assert flatten(restored)[name].tobytes() == array.tobytes(), name
    assert restored["state"]["nothing"] is None


def test_a_folders_name_is_no_pattern(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "runs [new] é*?#" / "checkpoints")) as checkpoints:
        checkpoints.save(3, tree(3), {}, {"accuracy": 0.5})
        checkpoints.wait()
        assert checkpoints.restore(3, tree())[0]["state"]["step"] == 3


def test_nothing_to_restore(opened):
    assert opened().restore_newest(tree()) is None


def test_newest_and_best_are_kept(opened):
    checkpoints = opened(keep_last=2, keep_best=1, best_metric="accuracy")
    for step, accuracy in [(1, 0.1), (2, 0.9), (3, 0.3), (4, None), (5, 0.5), (6, 0.9), (7, 0.2), (8, 0.1)]:
        checkpoints.save(step, tree(step), {}, None if accuracy is None else {"accuracy": accuracy})
    checkpoints.wait()
    assert checkpoints.steps() == [6, 7, 8]
    assert checkpoints.best_step() == 6  # of equals the later
    again = opened(keep_last=2, keep_best=1, best_metric="accuracy")
    again.save(9, tree(9), {}, {"accuracy": 0.0})
    again.wait()
    assert again.steps() == [6, 8, 9]


def test_best_loss_is_the_lowest(opened):
    checkpoints = opened(keep_last=1, keep_best=1, best_metric="ema_loss", higher_is_better=False)
    for step, loss in [(1, 0.5), (2, 0.1), (3, 0.3)]:
        checkpoints.save(step, tree(step), {}, {"ema_loss": loss})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.best_step() == 2


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("loss", [0.5, np.nan, 0.7, 0.8, 0.9], 1),
        ("loss", [np.nan, np.nan, 0.5, 0.7, 0.6], 3),
        ("ema_loss", [0.9, 0.5, -np.inf, 0.8, np.inf], 2),
        ("accuracy", [0.9, np.nan, 0.4, 0.3, 0.2], 1),
        ("accuracy", [np.nan, np.nan, np.nan, np.nan, np.nan], None),
    ],
)
def test_what_is_not_finite_is_never_the_best_nor_pushes_it_out(opened, metric, values, best):
    rank = {"best_metric": metric, "higher_is_better": metric == "accuracy"}
    checkpoints = opened(**rank, asynchronous=False)
    for step, value in enumerate(values, 1):
        checkpoints.save(step, {"x": np.float32(step)}, {}, {metric: value})
    for each in (checkpoints, opened(**rank)):  # the second has read it from the files, which are JSON
        assert each.best_step() == best
        assert {4, 5} <= set(each.steps())
        assert best is None or best in each.steps()


def test_without_a_best_there_is_none(opened):
    opened(asynchronous=False).save(1, tree(1), {}, {"accuracy": 0.5})
    assert opened(keep_best=0).best_step() is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "metadata"])
def test_a_damaged_newest_is_reported_and_the_one_before_used(opened, tmp_path, damage):
    checkpoints = opened()
    for step in (1, 2):
        checkpoints.save(step, tree(step), {"step": step})
    checkpoints.wait()
    newest = tmp_path / "checkpoints" / "2"
    victim = files(newest)[-1]
    match damage:
        case "flip":
            flip_a_bit(victim)
        case "truncate":
            victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
        case "empty":
            victim.write_bytes(b"")
        case "remove":
            victim.unlink()
        case "metadata":
            next(newest.rglob("json/metadata")).write_text("{")
    reports: list[str] = []
    restored = opened(report=reports.append).restore_newest(tree())
    assert restored is not None
    step, arrays, extra = restored
    assert step == extra["step"] == int(arrays["state"]["step"]) == 1
    assert len(reports) == 1
    assert "checkpoints/2 is damaged" in reports[0]
    assert list((tmp_path / "damaged_checkpoints").iterdir()), "set aside, not deleted"
    assert opened().steps() == [1]


def test_no_flipped_bit_goes_unseen(opened, tmp_path):
    """Orbax by itself gives back some of them silently. A bit that no array is read from may flip."""
    checkpoints = opened()
    checkpoints.save(1, tree(1), {})
    checkpoints.wait()
    found = 0
    for victim in files(tmp_path / "checkpoints" / "1"):
        content = victim.read_bytes()
        for position in np.linspace(0, len(content) - 1, 12).astype(int):
            changed = bytearray(content)
            changed[position] ^= 4
            victim.write_bytes(bytes(changed))
            try:
                restored, _ = opened(read_only=True).restore(1, tree())
            except DamagedError:
                found += 1
                continue
            for name, array in flatten(tree(1)).items():
                assert flatten(restored)[name].tobytes() == array.tobytes(), name
        victim.write_bytes(content)
    assert found >= 10


def test_a_few_bytes_that_say_they_are_many_are_not_read(opened, tmp_path):
    """TensorStore fills what is not stored with one value."""
    opened(asynchronous=False).save(1, tree(1), {})
    base = f"file://{tmp_path}/checkpoints/1/arrays/"
    lying = {"shape": [2**33], "chunks": [2**20], "dtype": "<f4", "compressor": None, "fill_value": 0}
    store = {"driver": "ocdbt", "base": base, "path": "state.kernel/"}
    tensorstore.open(
        {"driver": "zarr", "kvstore": store, "metadata": lying}, create=True, delete_existing=True
    ).result()
    with pytest.raises(DamagedError, match="said to be far larger than its files"):
        opened(read_only=True).read(1)


def test_all_damaged_is_an_error(opened, tmp_path):
    checkpoints = opened()
    checkpoints.save(1, tree(1), {})
    checkpoints.wait()
    flip_a_bit(files(tmp_path / "checkpoints" / "1")[-1])
    for _ in range(2):  # the second time no less: nothing was moved, nothing starts again from nothing
        with pytest.raises(RunError, match=r"no checkpoint could be read: .*checkpoints/1 is damaged"):
            opened(report=lambda line: None).restore_newest(tree())


def test_another_model_is_no_damage(opened, tmp_path):
    """It is said, and nothing is moved."""
    checkpoints = opened()
    checkpoints.save(1, tree(1), {})
    checkpoints.wait()
    other = tree()
    other["state"]["kernel"] = np.zeros(3)
    with pytest.raises(RunError, match=r"another model or version: state/kernel is float32"):
        opened().restore_newest(other)
    assert not (tmp_path / "damaged_checkpoints").exists()
    with pytest.raises(RunError, match="missing or unexpected"):
        opened().restore_newest({"list": tree()["list"]})


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_that_fails_is_loud(opened, tmp_path, asynchronous, capfd):
    """In one error, without what Orbax's closed event loop would print of the other arrays."""
    many = {str(number): np.random.default_rng(number).normal(size=(100, 100)) for number in range(40)}
    checkpoints = opened(asynchronous=asynchronous)
    checkpoints.save(1, many, {})
    checkpoints.wait()

    def save():
        checkpoints.save(2, many, {})
        checkpoints.wait()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # as on a full disk, the files cannot grow
    try:
        with pytest.raises(RunError, match=r"saving to .* failed"):
            save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert opened(read_only=True).steps() == [1]
    assert "Traceback" not in capfd.readouterr().err


def test_names_and_structure():
    flat = flatten(tree())
    assert set(flat) == {"state/kernel", "state/step", "list/0"}
    assert unflatten(flat, tree())["state"]["empty"] == {}
    assert checksum(np.arange(4.0)) != checksum(np.arange(4.0)[::-1])
    assert checksum(np.zeros((0, 3))) == 0
