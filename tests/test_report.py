"""The report: a page whose numbers are the evaluation's, that holds what names may be, and needs nothing else."""

import contextlib
import functools
import html.parser
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from jaxcnn.data.decoding import fit_image
from jaxcnn.errors import UserError
from jaxcnn.layers.conv import conv
from jaxcnn.models import MODELS
from jaxcnn.models.published import PUBLISHED
from jaxcnn.report import figures, files, from_files, opened, page
from jaxcnn.report.__main__ import main
from jaxcnn.report.layers import layers, multiply_adds
from jaxcnn.report.palette import COLOURS
from jaxcnn.report.svg import to_png, to_svg
from jaxcnn.results import looks
from jaxcnn.results.measure import Predictions
from tests.large_images import CountedRecords
from tests.runs import small_config, train

SCRIPT = "<script>document.title='hacked'</script>"
NAMES = [
    SCRIPT,
    "$x_1$ & \"b\" 'c'",
    "שלום עולם",
    "n" * 300,
    "two\nlines\x00",
    "猫 😺",
    "\udcff",
    "7",
    "</svg><b>",
    "9",
]
SECTIONS = [
    "Diagnosis", "Training", "Scores", "Confusion", "Calibration", "Mistakes", "Embedding", "Filters", "Feature maps",
    "Layers", "Augmentation", "Record",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders: a small run of hostile class names, its report outside; and the same with another seed, not finished."""
    folder = tmp_path_factory.mktemp("report")
    config = small_config(model__name="cnn", model__dropout_rate=None, optimizer__ema_decay=None, num_steps=6)
    result = train(config, folder / "first")
    saved = json.loads((folder / "first" / "config.json").read_text())
    saved["data"]["class_names"] = NAMES
    (folder / "first" / "config.json").write_text(json.dumps(saved))
    summary = {
        "experiment": "test", "status": "finished", **result, "num_params": 87_178, "platform": "cpu", "num_devices": 8,
        "versions": {"jax": "1"}, "seconds": {"setup": 1.0, **result["seconds"]},
    }  # fmt: skip
    (folder / "first" / "summary.json").write_text(json.dumps(summary))
    (folder / "second").mkdir()
    saved["config"]["seed"] = 1
    saved["data"]["class_names"] = list("0123456789")
    (folder / "second" / "config.json").write_text(json.dumps(saved))
    shutil.copy(folder / "first" / "metrics.jsonl", folder / "second")
    telemetry: list[dict[str, Any]] = [
        {"step": step, "gradient_norm": 3 / step, "layers": {}, "activations": {}} for step in (3, 6)
    ]
    (folder / "second" / "telemetry.jsonl").write_text("\n".join(map(json.dumps, telemetry)))
    return folder


def report(*arguments):
    """What the command prints and returns."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main(["report", *map(str, arguments)], 0.0)
    return code, said.getvalue()


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    """(the page's text, the folder it is in) of the first run."""
    before = contents(runs / "first")
    folder = tmp_path_factory.mktemp("page")
    assert report("--workdir", runs / "first", "--output", folder)[0] == 0
    assert contents(runs / "first") == before, "the run's folder was changed"
    return (folder / "report.html").read_text(), folder


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


class Checker(html.parser.HTMLParser):
    """Elements that are closed as they were opened; ids, attributes and texts."""

    EMPTY = frozenset({"meta", "img", "br"})

    def __init__(self):
        super().__init__()
        self.stack, self.ids, self.elements, self.texts = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.EMPTY:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.stack[-1] if self.stack else "", data))


def checked(text):
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.stack == []
    return checker


def test_the_page_is_whole_and_stands_alone(made):
    text, folder = made
    checker = checked(text)
    assert re.findall(r'<h2 id="[^"]*">([^<]*)', text) == SECTIONS
    assert "Could not be made" not in text
    assert "Grad-CAM for the class that was predicted" in text
    assert "Not here" not in text
    assert len(checker.ids) == len(set(checker.ids))
    for tag, attributes in checker.elements:
        assert "on" not in {name[:2] for name in attributes}, attributes  # no handlers
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
        assert tag not in ("link", "iframe", "object", "base")
        if tag == "img":
            assert "alt" in attributes
        if tag == "svg":
            assert attributes["aria-label"]
    assert [tag for tag, _ in checker.elements].count("script") == 1
    assert len(text) < 3e6
    pictures = {path.name for path in (folder / "report").iterdir()}
    assert pictures == {
        "accuracy.png", "augmentation.png", "confusion_matrix.png", "feature_maps.png", "filters.png",
        "images_per_second.png", "learning_rate.png", "loss.png", "mistakes.png", "pca.png", "reliability.png",
        "tsne.png",
    }  # fmt: skip
    for name in pictures:
        Image.open(folder / "report" / name).verify()


def test_its_numbers_are_the_evaluations(made, runs):
    """Through the page's tables, against the summary that training wrote."""
    text, _ = made
    summary = json.loads((runs / "first" / "summary.json").read_text())
    accuracy = summary["splits"]["test"]["accuracy"]
    assert f"<dd>{accuracy:.2%}<small>" in text
    (score,) = re.findall(r"<bdi>Accuracy</bdi></td><td[^>]*><bdi>([\d.]+)", text)
    assert float(score) == pytest.approx(accuracy, abs=5e-5)
    whole = re.findall(r"Rows are labels, columns predictions.*?</table>", text, re.DOTALL)[-1]
    rows = [re.findall(r'class="number"[^>]*><bdi>([\d,]+)', row) for row in whole.split("<tr>")[2:]]
    matrix = np.array([[int(value.replace(",", "")) for value in row] for row in rows])
    assert matrix.shape == (10, 10)
    assert matrix.sum() == summary["splits"]["test"]["num_examples"]
    assert np.trace(matrix) / matrix.sum() == pytest.approx(accuracy)
    titles = re.findall(r"<title>[^<]*: ([\d,]+) of [\d,]+ \(", text)  # of the drawing's cells
    assert sorted(map(int, titles)) == sorted(matrix[matrix > 0].tolist())


def test_names_may_be_anything(made):
    text, _ = made
    assert SCRIPT not in text
    assert "<b>&lt;/svg" in text or "&lt;/svg&gt;&lt;b&gt;" in text
    shown = {data for tag, data in checked(text).texts if tag == "bdi"}
    assert {SCRIPT, "$x_1$ & \"b\" 'c'", "שלום עולם", "n" * 36 + "…" + "n" * 36, "two lines", "猫 😺", "?"} <= shown
    assert "\x00" not in text


def test_a_reason_that_is_no_text_is_shown():
    """As of a path that is no UTF-8, with an escape sequence in it."""
    assert page.absent("no \udcff.png <\x1b[2J") == '<p class="absent">no \\udcff.png &lt;\\x1b[2J</p>\n'


def test_several_runs_are_compared(runs, tmp_path):
    code, said = report("--workdir", runs / "first", runs / "second", runs / "first", "--quick", "--output", tmp_path)
    assert code == 0
    text = (tmp_path / "report.html").read_text()
    assert "2 runs compared" in text  # one that is named twice is one
    assert re.search(r"<bdi>seed</bdi></td><td[^>]*><bdi>0</bdi></td><td[^>]*><bdi>1</bdi>", text)
    assert "<bdi>optimizer.name</bdi></td><td class" not in text  # it does not differ
    assert "at step 6 of 6" in text
    assert "Made with --quick" in text
    assert {path.name for path in (tmp_path / "report").rglob("*.png")} == {
        "accuracy.png", "loss.png", "learning_rate.png", "images_per_second.png", "gradient_norm.png"
    }  # fmt: skip
    assert "report.html" in said


def test_only_seeds_differ():
    def run(seed, accuracy):
        saved = {
            "config": {"seed": seed, "batch_size": 1, "num_steps": 1},
            "data": {"fingerprint": "a", "splits": "b", "num_examples": {"train": 1}},
        }
        splits = {"test": {"accuracy": accuracy, "loss": 1.0}}
        summary = {
            "splits": splits, "num_params": 1, "epochs": 1, "seconds": {"train": 1}, "images_per_second": 1,
            "weights": "last",
        }  # fmt: skip
        return files.RunFiles(None, str(seed), saved, summary, [], [], [])

    body = from_files.comparison([run(0, 0.90), run(1, 0.92), run(2, 0.94)]).body
    assert "<bdi>optimizer.name</bdi>" not in body  # which these are too old to have
    assert "92.00 ± 2.00 % (mean ± standard deviation, n = 3)" in body


def test_what_is_absent_is_said(runs, tmp_path, monkeypatch):
    """Data that are not here: what needs them says so, what does not is there; and of a run without any row."""
    saved = json.loads((runs / "first" / "config.json").read_text())
    saved["data"]["class_names"] = list("0123456789")
    saved["config"]["data"]["name"] = f"folder:{tmp_path}/nowhere"
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(runs / "first" / "checkpoints")
    (run / "config.json").write_text(json.dumps(saved))
    evaluate = mock.Mock(wraps=opened.evaluate_run)
    monkeypatch.setattr(opened, "evaluate_run", evaluate)
    assert report("--workdir", run)[0] == 0
    assert evaluate.call_count == 1  # not again for each section
    text = (run / "report.html").read_text()
    checked(text)
    for title in ("Scores", "Confusion", "Calibration", "Mistakes", "Embedding", "Feature maps", "Augmentation"):
        assert re.search(rf">{title}</h2>\s*<p class=\"absent\">Not here: [^<]*nowhere", text), title
    for there in ("filters of conv1", "Layers of cnn", "there is no row of training yet", "No loss: no row"):
        assert there in text


def test_wrong_commands_are_one_line(runs, tmp_path):
    for arguments, message in (
        ([], "no run given; pass --workdir"),
        (["--workdir", tmp_path / "none"], "holds no run: there is no config.json in it"),
        (["--workdir", runs / "first", "--split=tests"], "--split=tests is not known; did you mean 'test'"),
        (["--workdir", runs / "first", "--step=best1"], "neither best, last nor the number of a step"),
        (["--workdir", runs / "first", "--quik"], "Unknown command line flag 'quik'"),
        (["--workdir", runs / "first", "--quick", "--output", runs / "first" / "config.json"], "cannot be written"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            report(*arguments)
        assert "\n" not in str(error.value)


def test_a_section_that_fails_is_said_and_the_page_stays(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(from_files, "record", lambda run: {"there": 1}["missing"])
    assert report("--workdir", runs / "second", "--quick", "--output", tmp_path)[0] == 1
    assert "Could not be made: KeyError: &#x27;missing&#x27;" in (tmp_path / "report.html").read_text()
    assert "report: 'Record' could not be made: KeyError" in capsys.readouterr().err


# ---- in a browser


PROBE = """<!doctype html><title>probe</title><pre></pre>
<iframe src="report.html" style="width:390px;height:800px;border:0"></iframe>
<script>
onload = () => {
  const inside = document.querySelector("iframe").contentDocument, root = inside.documentElement;
  const scrolls = node => node.closest(".scroll, nav ul");
  const wide = [...inside.body.querySelectorAll("*")].filter(
    node => !scrolls(node) && !node.closest("svg") && node.getBoundingClientRect().right > 390.5);
  const paper = () => getComputedStyle(inside.body).backgroundColor;
  const before = paper();
  inside.querySelector("button.theme").click();
  const column = [...inside.querySelectorAll("th")].find(head => head.textContent === "recall");
  const rows = () => [...column.closest("table").tBodies[0].rows];
  const values = () => rows().map(row => Number(row.cells[column.cellIndex].dataset.value));
  column.firstChild.click();
  const down = values();
  column.firstChild.click();
  document.querySelector("pre").textContent = JSON.stringify({
    title: inside.title, width: root.scrollWidth, wide: wide.map(node => node.outerHTML.slice(0, 200)),
    themes: [before, paper()], down, up: values(), images: [...inside.images].every(image => image.naturalWidth > 0),
    sections: inside.querySelectorAll("section").length,
  });
};
</script>"""


def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    return found or pytest.skip("no Chromium to look at the page with")


def test_in_a_real_browser(made, tmp_path):
    """At 390 pixels: nothing is wider, nothing is fetched, no script of a name runs, the two buttons work."""
    program = browser()
    (tmp_path / "report.html").write_text(made[0])
    (tmp_path / "probe.html").write_text(PROBE)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *values):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = subprocess.run(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
             "--window-size=800,900", "--virtual-time-budget=5000", "--dump-dom", f"http://127.0.0.1:{server.server_port}/probe.html"],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    (said,) = re.findall(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    found = json.loads(html.unescape(said))
    assert found["title"] == "test: report"
    assert found["width"] <= 390
    assert found["wide"] == []
    assert found["themes"][0] != found["themes"][1]
    assert found["down"] == sorted(found["down"], reverse=True)
    assert found["up"] == sorted(found["up"])
    assert len(set(found["up"])) > 1
    assert found["images"]
    assert found["sections"] == len(SECTIONS)
    assert set(asked) <= {"/probe.html", "/report.html", "/favicon.ico"}
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []


# ---- figures


def test_training_has_no_matplotlib():
    """Which takes a moment to import."""
    package = Path(files.__file__).parents[1]
    importing = [path for path in package.rglob("*.py") if re.search(r"(import|from) matplotlib", path.read_text())]
    found = {str(path.relative_to(package)) for path in importing if path.parent.name != "report"}
    assert found == {"training/rate_range.py"}


def test_a_figure_in_the_page_has_the_pages_colours_and_words():
    light = COLOURS["series1"][0]
    names = ("$a$<b>", "font: 1px a", f'{light} id="x"', "a\x1bb")
    lines = [figures.Line(name, range(5), [0.0001, 0.00012, 0.00013, 0.0002, 0.0003], 0) for name in names]
    drawing = figures.curves(lines, x_label="epoch", y_label="rate", logarithmic=False)
    drawing.axes[0].set_ylabel("$x_1$")
    text = to_svg(drawing, describe='"what"\x07 it is', titles={})
    words = [data for tag, data in checked(text).texts if tag == "text"]
    assert {"$a$<b>", "font: 1px a", figures.short(names[2]), r"a\x1bb", "$x_1$"} <= set(words)
    assert not any(light in tag for light, _ in COLOURS.values() for tag in re.findall("<[^>]*>", text))
    assert "var(--series1)" in text
    assert ">0.00015</text>" in text  # what is written is not rounded as coordinates are
    assert 'aria-label="&quot;what&quot;\\x07 it is"' in text
    assert not re.search(r'="[^"]*\d\.\d{3}', text)
    assert Image.open(io.BytesIO(to_png(drawing))).size[0] > 600


@pytest.mark.parametrize("count", [2, 120])
def test_a_confusion_matrix_of_any_size(count):
    matrix = np.eye(count, dtype=int) * 7
    matrix[0, 1] = 1
    matrix[1] = 0  # a class without examples
    drawing, titles = figures.confusion_matrix(matrix, [f"class {number}" for number in range(count)])
    text = to_svg(drawing, describe="matrix", titles=titles)
    assert len(text) < 100_000
    if count == 2:
        assert titles == {
            "cell-0-0": "class 0: 7 of 8 (87.5%) predicted right",
            "cell-0-1": "class 0: 1 of 8 (12.5%) predicted as class 1",
        }
        assert all(f"<title>{words}</title>" in text for words in titles.values())


def test_labels_are_moved_apart_and_no_further():
    assert figures.apart([0.5, 0.2, 0.9], gap=0.1) == [0.5, 0.2, 0.9]
    moved = figures.apart([0.99, 1.0, 0.5], gap=0.1)
    assert moved[1] - moved[0] == pytest.approx(0.1, abs=1e-3)
    assert max(moved) <= 1 + 1e-6
    assert moved[2] == 0.5
    places = figures.untangled(np.array([[0.5, 0.5], [0.55, 0.51], [0.9, 0.5]]), width=0.2, height=0.1)
    assert places[1, 1] - places[0, 1] == pytest.approx(0.1)
    assert places[2].tolist() == [0.9, 0.5]


def test_long_lines_are_means_of_neighbours():
    xs, ys = figures.thinned(list(range(3 * figures.MOST_POINTS)), [1.0, 2.0, 6.0] * figures.MOST_POINTS)
    assert len(xs) == figures.MOST_POINTS
    assert set(ys) == {3.0}
    assert xs[:2] == [1.0, 4.0]


def test_pictures_of_any_size_and_channels():
    for shape, kind in (((8, 8, 1), "png"), ((32, 32, 3), "png"), ((300, 200, 3), "jpeg"), ((5, 5, 4), "png")):
        text = page.picture(np.zeros(shape, np.uint8), '"a"')
        assert f"data:image/{kind};base64," in text
        assert 'alt="&quot;a&quot;"' in text
        assert len(text) < 20_000


# ---- the network


def test_multiply_adds_are_the_published_ones():
    model, images = MODELS["resnet20"](num_classes=10), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    trace = jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, images)
    assert multiply_adds(trace.jaxpr) / 1e9 == pytest.approx(PUBLISHED["resnet20"].macs, rel=0.002)
    arrays = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 2, 12))
    grouped = jax.make_jaxpr(functools.partial(conv, strides=2, padding=1, groups=3))(*arrays)
    assert multiply_adds(grouped.jaxpr) == 2 * 4 * 4 * 12 * 3 * 3 * 2
    looped = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=3)[0])(jnp.ones((4, 4)))
    assert multiply_adds(looped.jaxpr) == 3 * 4**3


class Twice(nn.Module):
    """Calls a layer twice, which counts twice but has its parameters once."""

    @nn.compact
    def __call__(self, images, *, train):
        dense = nn.Dense(3, use_bias=False, name="shared")
        return nn.Dense(2, name="head")(dense(dense(images.reshape(len(images), -1))))


def test_layers_are_those_of_the_model():
    model = Twice()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 1, 3, 1)), train=False)
    found, whole = layers(model, dict(variables), (1, 3, 1), batch_size=4)
    assert [(each.name, each.num_params, each.multiply_adds, each.output) for each in found] == [
        ("shared", 9, 18, (3,)),
        ("head", 8, 6, (2,)),
    ]
    assert (whole.num_params, whole.multiply_adds, whole.output) == (17, 24, (2,))
    assert all(each.seconds > 0 for each in [*found, whole])


def fake(name, image_shape, **options):
    module = MODELS[name](num_classes=4, **options)
    images = jnp.zeros((1, *image_shape))
    variables = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), images)
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: draw.standard_normal(x.shape).astype(np.float32), variables)
    return SimpleNamespace(
        module=module, variables=variables, image_shape=image_shape,
        config=SimpleNamespace(model=SimpleNamespace(name=name)),
        mean=(0.5,) * image_shape[2], std=(0.2,) * image_shape[2],
    )  # fmt: skip


def test_first_filters_of_models_with_and_without_convolutions():
    filters_of = lambda model: looks.first_filters(
        model.module, model.variables["params"], model.image_shape, model_name="a model"
    )
    found = filters_of(fake("resnet20", (32, 32, 3)))
    assert (found.layer, found.kind, found.images.shape, found.total) == ("stem_conv", "convolution", (16, 3, 3, 3), 16)
    model = fake("mlp", (6, 5, 1))
    found = filters_of(model)
    assert (found.kind, found.images.shape[1:]) == ("dense layer", (6, 5, 1))
    kernel = model.variables["params"][found.layer]["kernel"][:, 0].reshape(6, 5)
    expected = np.round(127.5 + 127.5 * kernel / np.abs(kernel).max())
    np.testing.assert_array_equal(found.images[0, :, :, 0], expected)
    with pytest.raises(UserError, match="shows no maps of an image's places"):
        looks.feature_maps(model, np.zeros((6, 5, 1), np.uint8))


def test_feature_maps_are_the_channels_that_answer_most():
    model = fake("cnn", (8, 8, 1))
    stages = looks.feature_maps(model, np.random.default_rng(0).integers(0, 256, (8, 8, 1)).astype(np.uint8))
    assert [(stage.name, stage.maps.shape, stage.channels) for stage in stages] == [
        ("stage1", (16, 8, 8), 32),
        ("stage2", (16, 4, 4), 64),
    ]
    for stage in stages:
        assert stage.maps.min() == 0
        assert stage.maps.max() == 1


def test_large_images_are_not_held():
    records = CountedRecords()
    images = looks.images_of(records.split(), range(1, 60), image_shape=(8, 8, 3))
    assert records.most == 1
    np.testing.assert_array_equal(images[6], fit_image(records[7]["image"], (8, 8, 3)))


def test_the_surest_mistakes_come_first():
    logits = np.log(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]], np.float32))
    predictions = Predictions(np.arange(4), np.array([1, 1, 1, 0]), logits)
    assert predictions.surest_mistakes(2).tolist() == [0, 3]
    assert predictions.surest_mistakes(9).tolist() == [0, 3, 1]


def test_palette_has_contrast():
    """WCAG's ratio: words 4.5 against the paper and the card, lines 3, in both themes."""

    def light(colour):
        levels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def ratio(one, other):
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    assert len({light for light, _ in COLOURS.values()}) == len(COLOURS)  # one drawing's colours tell their names
    for theme in (0, 1):
        for name, pair in COLOURS.items():
            for ground in ("paper", "card"):
                wanted = {"paper": 1, "card": 1, "line": 1}.get(name, 3 if name.startswith("series") else 4.5)
                assert ratio(pair[theme], COLOURS[ground][theme]) >= wanted, (name, theme)
