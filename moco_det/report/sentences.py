"""The captions and sentences of the page: templates/sentences.yaml filled in."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined, Template

from moco_det.report import formats
from moco_det.report.document import Sentence
from moco_det.report.groups import Group

FILTERS = (formats.capital, formats.counted, formats.listed, formats.number, formats.seeds)


@lru_cache(maxsize=1)
def _templates() -> dict[str, Template]:
    environment = Environment(undefined=StrictUndefined)
    environment.filters |= {written.__name__: written for written in FILTERS}
    environment.filters["grouped"] = "{:,}".format
    text = (resources.files("moco_det.report") / "templates" / "sentences.yaml").read_text("utf-8")
    return {name: environment.from_string(one) for name, one in yaml.safe_load(text).items()}


def say(name: str, /, **values: Any) -> str:
    """One of the captions or sentences with these values."""
    return _templates()[name].render(values)


def sentence(name: str, /, **values: Any) -> Sentence:
    """One of them, its finding apart."""
    said = _templates()[name].render(values)
    if not said.startswith("**"):
        return Sentence(said)
    _, finding, text = said.split("**", 2)
    return Sentence(text, finding)


def config_note(group: Group) -> str:
    """The end of every caption: which config, for how long, on what."""
    return say("config", data=group.data)
