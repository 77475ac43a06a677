"""Studies: which runs they have, where these lie, and what their folder takes."""

import json

import pytest
from etils import epath

from jaxcnn.ablation.study import Study, StudyRun, check_study, overridden, read_plan, write_plan
from jaxcnn.config import Config
from jaxcnn.errors import UserError

VARIANTS = {"base": {}, "slow": {"optimizer.learning_rate": 0.01}, "wide": {"model.width": 2.0}}


def study(**changes) -> Study:
    return Study(**{"config": Config(), "variants": VARIANTS, "seeds": (0, 1), **changes})


def test_the_runs_and_their_configs():
    runs = list(study(folds=2).runs())
    assert len(runs) == len({run.folder for run in runs}) == 3 * 2 * 2
    assert [run.variant for run in runs[:3]] == list(VARIANTS)  # seed by seed
    config = study(folds=2).config_of(StudyRun("slow", 1, 2))
    assert (config.optimizer.learning_rate, config.seed, config.data.fold) == (0.01, 1, "2/2")
    assert Config().optimizer.learning_rate == 0.1  # the base stays as it was


def test_a_field_is_named_by_its_path():
    assert overridden(Config(), {"model.hidden": [8, 8]}).model.hidden == (8, 8)
    for path, words in (("optimizer.learning_rat", "learning_rate"), ("optim.x", "optimizer"), ("model", "group")):
        with pytest.raises(UserError, match=words):
            overridden(Config(), {path: 1})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": {}}, "no variants"),
        ({"seeds": ()}, "name each once"),
        ({"seeds": (1, 1)}, "name each once"),
        ({"split": "train"}, "test"),
        ({"folds": 1}, "no fold"),
        ({"variants": {"a": {"seed": 3}}}, "sets seed"),
        ({"variants": {"a": {}, "b": {}}}, "the same config"),
        ({"variants": {"A": {}, "a": {"batch_size": 8}}}, "share a folder"),
        ({"variants": {"a": {"batch_size": 0}}}, "variant 'a': batch_size=0"),
        ({"variants": {"a": {"batch_size": "8"}}}, "variant 'a': batch_size"),
    ],
)
def test_what_is_no_study(changes, words):
    with pytest.raises(UserError, match=words):
        check_study(study(**changes))


@pytest.mark.parametrize("name", ["../../etc", "a/b", "x" * 300, "☃ snow", "", ".", "CON\n"])
def test_any_name_has_a_folder_of_its_own(name):
    folder = StudyRun(name, 0).folder
    first, middle, last = folder.split("/")
    assert (first, last) == ("runs", "seed-0")
    assert middle not in ("", ".", "..")
    assert middle.isascii()
    assert len(middle) < 100


def test_the_plan_is_read_as_it_was_written_and_may_grow(tmp_path):
    folder = epath.Path(tmp_path / "study")
    write_plan(folder, study(), experiment="digits")
    assert read_plan(folder) == (study(), "digits")
    grown = study(seeds=(0, 1, 2), variants=VARIANTS | {"small": {"batch_size": 8}})
    write_plan(folder, grown, experiment="digits")
    write_plan(folder, study(), experiment="digits")  # asks for less: what is there stays
    assert read_plan(folder) == (grown, "digits")
    older = json.loads((tmp_path / "study" / "plan.json").read_text())
    del older["config"]["measure_test"]  # a field of a later version
    (tmp_path / "study" / "plan.json").write_text(json.dumps(older))
    write_plan(folder, study(), experiment="digits")
    assert read_plan(folder) == (grown, "digits")
    with pytest.raises(UserError, match="'slow' has other fields"):
        write_plan(folder, study(variants={"slow": {"optimizer.learning_rate": 0.5}}), experiment="digits")
    with pytest.raises(UserError, match="another config: num_epochs"):
        write_plan(folder, study(config=Config(num_epochs=3.0)), experiment="digits")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no study"):
        write_plan(epath.Path(tmp_path), study(), experiment="digits")
    with pytest.raises(UserError, match=r"no plan\.json"):
        read_plan(epath.Path(tmp_path))
    (tmp_path / "plan.json").write_text(json.dumps({"study": 3}))
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(epath.Path(tmp_path))
