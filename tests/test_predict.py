"""python -m jaxcnn.predict: any images of any names, streamed to a table, CSV or JSON; and what people type wrong."""

import contextlib
import csv
import functools
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxcnn
from jaxcnn import predict
from jaxcnn.errors import UserError
from jaxcnn.layers.conv import conv_xla
from jaxcnn.results.rows import COLUMNS, as_csv, as_json, write
from tests.nasty_images import damaged_images, nasty_images, write_classes
from tests.runs import begin, small_config

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    "plain.png",
    "with spaces.png",
    "größe.png",
    "two\nlines.png",
    "[bold]x.png",
    os.fsdecode(b"not \xff utf8.png"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    write_classes(root / "set", {"bar": 12, "[red]füße": 12}, size=(14, 12))
    config = small_config(
        model__name="cnn", data__name=f"folder:{root / 'set'}", data__image_size=12, data__cache=False, batch_size=16,
        eval_batch_size=4, num_devices=1,
    )  # fmt: skip
    begin(config, root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def load():
    """Whatever was loaded once is not compiled again."""
    return functools.cache(jaxcnn.load)


@pytest.fixture
def command(trained, load, monkeypatch, capfd):
    """Runs the command in this process: (exit code, stdout as bytes, lines on stderr)."""
    monkeypatch.setattr("jaxcnn.training.parallel.set_up", lambda *arguments, **keywords: None)
    monkeypatch.setattr(
        "jaxcnn.layers.conv._conv", lambda x, kernel, window, *_: conv_xla(x, kernel, window)
    )  # quick to compile
    monkeypatch.setattr("jaxcnn.results.trained.load", load)

    def run(*arguments, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin))))
        capfd.readouterr()
        code = predict.main(["predict", f"--workdir={trained}", *map(str, arguments)], 0.0)
        output, errors = capfd.readouterr()
        return code, output, errors.splitlines()

    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """photos/: images under NAMES, one more in two folders, and what is no image."""
    root = tmp_path_factory.mktemp("images") / "photos"
    generator = np.random.default_rng(0)
    for name in (*NAMES, "a/same.png", "b/same.png"):
        path = root / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(generator.integers(0, 256, (14, 15, 3)).astype(np.uint8)).save(path)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"")
    return root


def in_order(root):
    """Of each folder first its own files."""
    return [str(root / name) for name in (*sorted(NAMES), "a/same.png", "b/same.png")]


def test_csv_has_the_exact_names_and_what_the_model_says(command, trained, load, images, tmp_path):
    code, output, errors = command(images, f"--csv={tmp_path / 'found.csv'}", "--top_k=2", "--batch_size=2")
    assert (code, errors) == (0, [])
    assert output == f"8 classified by {trained}, step 1; written to {tmp_path / 'found.csv'}\n"
    with open(tmp_path / "found.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        heading, *rows = csv.reader(file)
    assert heading == ["path", "class", "confidence", "class_2", "confidence_2"]
    assert [row[0] for row in rows] == in_order(images)
    model = load(str(trained), step="best")
    for row, ranked in zip(rows, model.classify([row[0] for row in rows], top_k=2), strict=True):
        assert [row[1], row[3]] == [name for name, _ in ranked]
        np.testing.assert_allclose([float(row[2]), float(row[4])], [share for _, share in ranked], atol=2e-6)


def test_json_is_a_list_and_stdout_has_nothing_else(command, images):
    code, output, errors = command("--json=-", images / "a", images / NAMES[-1], images / "plain.png")
    assert (code, errors) == (0, [])
    rows = json.loads(output)
    assert [row["path"] for row in rows] == [str(images / name) for name in ("a/same.png", NAMES[-1], "plain.png")]
    assert all(row.keys() == {"path", "class", "confidence"} for row in rows)
    assert output.count("\n") == 5, "a line a row, between those of the brackets"
    _, output, _ = command("--json=-", "--top_k=99", "--tta=flip", images / "a")
    (row,) = json.loads(output)
    assert sorted(each["class"] for each in row["top"]) == ["[red]füße", "bar"]
    assert sum(each["confidence"] for each in row["top"]) == pytest.approx(1, abs=1e-5)


def test_the_table_shows_every_name_on_a_line(command, images):
    code, output, errors = command(images, "--top_k", "2")
    assert (code, errors) == (0, [])
    shown = re.sub(r" *│\n│ *", "", output)
    for name in ("with spaces.png", "größe.png", r"two\nlines.png", "[bold]x.png", r"not \udcff utf8.png"):
        assert name in shown
    assert len(re.findall(r"\[red\]füße +│ +0\.\d{4} │", output)) == 8
    assert "8 classified by" in output


def test_damaged_files_are_named_and_left_out(command, tmp_path):
    kinds, faults = nasty_images(), damaged_images()
    for name, encoded in [*((k, v.encoded) for k, v in kinds.items()), *((k, v[0]) for k, v in faults.items())]:
        (tmp_path / f"{name}.jpg".replace("/", " ")).write_bytes(encoded)
    (tmp_path / "link.png").symlink_to("nowhere.png")
    code, output, errors = command(tmp_path, "--json=-")
    assert code == 1
    assert {Path(row["path"]).stem for row in json.loads(output)} == {name.replace("/", " ") for name in kinds}
    assert len(errors) == len(faults) + 1
    for name, (_, said, _) in faults.items():
        assert any(re.match(rf"jaxcnn: {re.escape(str(tmp_path / name))}\.jpg: .*({said})", line) for line in errors), (
            name
        )
    assert f"jaxcnn: {tmp_path / 'link.png'}: No such file or directory" in errors
    code, output, errors = command(tmp_path / "nothing.jpg", f"--csv={tmp_path / 'none.csv'}")
    assert (code, errors) == (1, [f"jaxcnn: {tmp_path / 'nothing.jpg'}: the file is empty"])
    assert "0 classified by" in output
    assert "1 left out" in output
    assert (tmp_path / "none.csv").read_text() == "path,class,confidence\n"


def test_stdin_has_paths_or_an_image(command, images):
    given = ["plain.png", "", NAMES[-1], "nowhere.png", "b"]
    lines = b"\n".join(os.fsencode(images / name) if name else b"" for name in given)
    code, output, errors = command("-", "--json=-", stdin=lines)
    found = [images / "plain.png", images / NAMES[-1], images / "b" / "same.png"]
    assert [row["path"] for row in json.loads(output)] == [str(path) for path in found]
    assert code == 1
    assert len(errors) == 1
    assert "nowhere.png" in errors[0]
    code, output, errors = command("-", "--json=-", stdin=(images / "plain.png").read_bytes())
    assert (code, errors) == (0, [])
    _, expected, _ = command(images / "plain.png", "--json=-")
    assert json.loads(output) == [json.loads(expected)[0] | {"path": "-"}]


def test_explanations_lie_as_the_images_do(command, trained, load, images, tmp_path):
    code, output, errors = command(images, f"--explain={tmp_path / 'heat'}", "--json=-", "--target=bar")
    assert (code, errors) == (0, [])
    rows = json.loads(output)
    assert [row["explanation"] for row in rows] == [
        str(tmp_path / "heat" / os.path.relpath(path, images)) + ".png" for path in in_order(images)
    ]
    from jaxcnn.results.explain import overlay

    model = load(str(trained), step="best")
    path = images / "b" / "same.png"
    drawn = np.asarray(Image.open(tmp_path / "heat" / "b" / "same.png.png"))
    expected = overlay(model.prepare(path)[0], model.explain(path, target="bar")[0])
    assert np.abs(drawn.astype(int) - expected).max() <= 2
    assert drawn.std() > 0
    (tmp_path / "full" / "same.png.png").mkdir(parents=True)
    code, _, errors = command(path, f"--explain={tmp_path / 'full'}", "--json=-")
    assert code == 1
    assert re.search(r"same.png: its explanation cannot be written to .*same.png.png: Is a directory", errors[0])


def test_a_run_of_many_is_neither_listed_nor_held(command, images, monkeypatch):
    """Rows come while images are still being taken."""
    taken, told = 0, list[int]()
    plain = images / "plain.png"

    def lines():
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield str(plain), str(plain)

    def to_json(row):
        told.append(taken)
        return "{}"

    monkeypatch.setattr(predict, "_images", lambda arguments: lines())
    monkeypatch.setattr("jaxcnn.results.rows.to_json", to_json)
    command("x", "--json=-")
    assert len(told) == 100
    assert told[0] <= 1 + 3 * 4 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no images given; pass files, folders, or -"),
        (["nowhere.png"], "there is no file or folder 'nowhere.png'"),
        (["IMAGES", "EMPTY"], "there are no images in the folder"),
        (["-"], "there is no path on stdin"),
        (["IMAGES", "--csv=-", "--json=-"], "would both write to stdout"),
        (["IMAGES", "--target=bar"], "say where to: --explain DIR"),
        (["IMAGES", "--explain=x", "--target=baar"], "no such class; did you mean 'bar'"),
        (["IMAGES", "--tta=flap"], "eval_tta='flap' is not known; did you mean 'flip'"),
        (["IMAGES", "--step=77"], "checkpoints of steps .*; or best, last"),
        (["IMAGES", "--top_k=0"], "0 is not an integer in the range"),
        (["IMAGES", "--topk=1"], "Unknown command line flag 'topk'"),
        (["IMAGES", "--csv=EMPTY"], "cannot be written: Is a directory"),
        (["IMAGES", "--csv=EMPTY/nowhere/x"], "--csv=.* cannot be written: No such file"),
        (["IMAGES", "--csv=EMPTY/x", "--json=EMPTY/../EMPTY_/x"], "cannot be written"),
        (["IMAGES", "--csv=EMPTY/x", "--json=EMPTY/./x"], "--csv and --json would both write"),
        (["IMAGES", "--csv=IMAGES/plain.png"], "plain.png is an image"),
        (["IMAGES/notes.txt", "--json=IMAGES/notes.txt"], "notes.txt is an image"),
        (["IMAGES", "--explain=/proc/x"], "--explain=/proc/x cannot be written"),
        (["IMAGES", "--step=\u0661"], "neither best, last nor"),
        (["IMAGES", "--batch_size=1" + "0" * 25], "batch_size"),
        (["IMAGES", "--flagfile=EMPTY"], "--flagfile is not taken"),
        (["IMAGES", "--workdir=EMPTY"], "holds no run"),
        (["IMAGES", "--workdir="], "no run given; pass --workdir"),
    ],
)
def test_wrong_commands_are_answered_in_a_line(command, images, tmp_path, arguments, message):
    words = [each.replace("IMAGES", str(images)).replace("EMPTY", str(tmp_path)) for each in arguments]
    with pytest.raises(UserError, match=message) as raised:
        command(*words)
    assert "\n" not in str(raised.value)


def test_the_process_writes_to_a_pipe_and_opens_no_data_set(trained, images):
    """Its reader leaves after a line; exit code and stderr as when all goes well."""
    code = (
        "import atexit, sys; sys.argv[0] = 'predict'\n"
        "atexit.register(lambda: print('imported', *{'tensorflow_datasets', 'grain', 'sklearn'} & set(sys.modules), "
        "file=sys.stderr))\n"
        "from jaxcnn.command import run_command; from jaxcnn.predict import main; run_command(main)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"--workdir={trained}", str(images), "--csv=-"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"path,class,confidence\n"
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    assert (process.wait(), errors) == (0, "imported\n")


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), BrokenPipeError()])
def test_what_there_is_is_kept_however_it_ends(tmp_path, error):
    def rows():
        yield {"path": "a.png", "class": ["cat"], "confidence": [0.5]}
        raise error

    makers = [functools.partial(form, columns=COLUMNS, top_k=1) for form in (as_csv, as_json)]
    ends_well = isinstance(error, BrokenPipeError)  # whoever read has left
    with contextlib.nullcontext() if ends_well else pytest.raises(RuntimeError, match="out of memory"):
        write(rows(), [(str(tmp_path / "csv"), makers[0]), (str(tmp_path / "json"), makers[1])])
    assert (tmp_path / "csv").read_text().splitlines()[1:] == ["a.png,cat,0.5"]
    assert [row["class"] for row in json.loads((tmp_path / "json").read_text())] == ["cat"]
