"""jaxcnn.load: a trained network from its run's folder alone."""

import numpy as np
import pytest

import jaxcnn
from jaxcnn import loop
from jaxcnn.build import build
from jaxcnn.checkpoint import Checkpoints
from jaxcnn.errors import UserError
from jaxcnn.feed import ResidentFeed
from tests.runs import small_config, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = small_config()
    train(config, folder)
    return config, folder


def test_predicts_what_evaluation_measured(trained):
    config, folder = trained
    model = jaxcnn.load(str(folder))
    run, feed = build(config)
    checkpoints = Checkpoints(folder / "checkpoints", best_metric=loop.best_metric(run), read_only=True)
    like = {"state": run.abstract_state(), "totals": run.metrics.empty()}
    state = checkpoints.restore(checkpoints.best_step() or 0, like)[0]["state"]
    (metrics,) = loop.evaluate_split(run, feed, "test", run.parallel.replicate(loop.result_variables(run, state)))
    assert isinstance(feed, ResidentFeed)
    images, labels = feed.arrays("test")
    probabilities = model.predict(images)
    assert probabilities.shape == (360, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == labels).mean() == pytest.approx(metrics["accuracy"])
    losses = -np.log(probabilities[np.arange(360), labels])
    assert losses.mean() == pytest.approx(metrics["loss"], rel=1e-4)
    last = jaxcnn.load(str(folder), step="2")
    assert last.source.endswith("step 2")
    assert not np.array_equal(last.predict(images[:3]), probabilities[:3])


def test_says_what_is_not_there(trained, tmp_path):
    with pytest.raises(UserError, match=r"checkpoints of steps 2, .*or best, last"):
        jaxcnn.load(str(trained[1]), step="3")
    with pytest.raises(UserError, match="holds no run"):
        jaxcnn.load(str(tmp_path))
