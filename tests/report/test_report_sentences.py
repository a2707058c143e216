"""The sentences of the page: one file of templates, none of them left over."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from moco_det import report
from moco_det.report.families import BY_LABELS, BY_SCHEDULE
from moco_det.report.sentences import say, sentence
from moco_det.report.statistics import RULE

FOLDER = Path(report.__file__).parent


def test_every_template_is_said_somewhere_and_what_is_said_has_one() -> None:
    written = yaml.safe_load((FOLDER / "templates" / "sentences.yaml").read_text("utf-8"))
    code = "".join(file.read_text("utf-8") for file in FOLDER.glob("*.py"))
    said = set(re.findall(r'\b(?:say|sentence)\(\s*"(\w+)"', code))
    for axis in (BY_SCHEDULE, BY_LABELS):
        said |= {axis.sentence, f"{axis.sentence}_chart"}
    assert said == set(written)


def test_a_finding_stands_apart_and_names_stay_text() -> None:
    plain = sentence("brackets", many=1, rule=RULE)
    assert (plain.finding, plain.text[:8]) == ("", "Brackets")
    found = sentence("many", verdict="higher", supervised="<b>", metric="box AP", arms=["a*b", "c"])
    assert (found.finding, found.text) == ("Higher than <b> in box AP", ": a*b and c.")
    assert say("failed", count=1) == "1 run failed and enters no mean: see Failed runs."
