"""Findings: what is wrong with a run, with the figure each rests on and what the config offers against it.

Pure: from what stands in a run's folder (`Facts`, which run/facts.py reads) to findings. Every threshold stands beside
its check with its reason; where there is no source it is our own choice, said so, and kept so wide that healthy runs
pass.
"""

from collections.abc import Iterator

import numpy as np

from jaxcnn.results.diagnosis import classes, inside, texts, training
from jaxcnn.results.diagnosis.finding import SEVERITIES, Finding
from jaxcnn.run.facts import Facts

__all__ = ["SEVERITIES", "Finding", "diagnose"]

CHECKS = (*training.CHECKS, *inside.CHECKS, *classes.CHECKS, *texts.CHECKS)


def diagnose(facts: Facts) -> list[Finding]:
    """All findings, the gravest first; none but those "not examined" where nothing is wrong."""
    findings = list(training.not_finite(facts))
    with np.errstate(divide="ignore", invalid="ignore"):  # ratios to losses of 0
        checks = [check for check in CHECKS if facts.has_accuracy or check not in training.OF_ACCURACY]
        findings += [each for check in checks for each in check(facts)] if facts.train else [_nothing_yet(facts)]
    return sorted([*findings, *_not_examined(facts)], key=lambda finding: SEVERITIES.index(finding.severity))


def _nothing_yet(facts: Facts) -> Finding:
    return Finding("training", "not examined", "there is no row of training yet", ("python -m jaxcnn.main …",))


def _not_examined(facts: Facts) -> Iterator[Finding]:
    def missing(name: str, what: str, *commands: str) -> Finding:
        return Finding(name, "not examined", what, commands)

    if not facts.validation:
        yield missing(
            "over- and underfitting, leakage by accuracy, length",
            "there is no row of validation",
            *(() if facts.option("data.validation_fraction") else ("--config.data.validation_fraction=0.1",)),
        )
    elif facts.train and not facts.has_accuracy:
        yield missing(
            "underfitting, leakage by accuracy, length", "nothing measures the accuracy of classes in this run"
        )
    if facts.summary is None:
        yield missing(
            "whether it trained long enough", "the run has not finished", "the command that began it goes on with it"
        )
    if not facts.telemetry:
        yield missing(
            "gradients, dead channels, sizes of updates",
            "there is no telemetry.jsonl",
            "--config.telemetry.every_steps=100",
        )
    if facts.predictions is None and facts.data["class_names"]:
        yield missing(
            "class collapse, label noise",
            "there is no predictions.csv",
            f"python -m jaxcnn.evaluate --workdir {facts.workdir}",
        )
    if facts.data_check is None and facts.has_images:
        what = "copies between splits" if facts.data.get("class_counts") else "copies between splits, class imbalance"
        yield missing(
            what,
            "there is no data_check.json",
            f"python -m jaxcnn.data check {facts.data['name']} --json {facts.workdir}/data_check.json",
        )
