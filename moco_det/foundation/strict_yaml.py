"""Yaml as configs are read: safe, with ``_BASE_`` files, and a key given twice is an error."""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML was built without libyaml: the same, ten times slower
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import read_text

BASE_KEY = "_BASE_"

MOST_YAML = 2 << 20  # bytes; a list of 20,000 class names takes a quarter of it
MOST_NODES, MOST_NESTED = 200_000, 50  # keys and values, aliases written out; lists and mappings
MOST_BASES = 20
WIDEST = 64  # bits of a whole number


class _StrictLoader(_SafeLoader):
    """Refuses a key given twice, for the last would win, and a key that is no name."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag == "tag:yaml.org,2002:merge":
            line = node.start_mark.line + 1  # type: ignore[union-attr]
            raise InputError(
                f"<< in line {line} is a merge key, which is not read: write its keys out, or take "
                f"them from a file by {BASE_KEY}"
            )
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > WIDEST:
                raise ValueError
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            line = node.start_mark.line + 1  # type: ignore[union-attr]
            raise InputError(
                f"the value in line {line} is no {kind}: correct or quote it"
            ) from None
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise InputError(f"the key in line {line} is a list or a mapping: keys are names")
            if key in seen:
                raise InputError(f"duplicate yaml key {key!r} in line {line}: keep one of the two")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _check_size(text: str) -> None:
    """InputError for what is nested too deeply or, its aliases written out, too long.

    Told by the parser's events, which need neither stack nor memory: an alias stands for a node as
    large as the one that it repeats, and ten lines of ten aliases each stand for ten billion.
    """
    total = 0
    sizes: dict[str, int | None] = {}  # nodes below an anchor; None while it is open
    opened: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=_SafeLoader):
        line = event.start_mark.line + 1  # type: ignore[union-attr]
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, total))
            if len(opened) > MOST_NESTED:
                raise InputError(f"line {line} is nested more than {MOST_NESTED} deep: flatten it")
            if event.anchor is not None:
                sizes[event.anchor] = None
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor is not None:
                sizes[event.anchor] = 1
            total += 1
        elif isinstance(event, yaml.AliasEvent):
            size = sizes.get(str(event.anchor), 0)
            if size is None:
                raise InputError(f"*{event.anchor} in line {line} holds itself: write it out")
            total += size
        if total > MOST_NODES:
            raise InputError(
                f"it has more than {MOST_NODES:,} values up to line {line}, aliases written out: "
                "shorten it"
            )


def load_mapping(text: str, what: str) -> dict[str, Any]:
    """A yaml text of keys and values; an InputError begins with `what` the text is of."""
    try:
        if len(text) > MOST_YAML:
            raise InputError(f"it is longer than {MOST_YAML:,} characters: shorten it")
        _check_size(text)
        content = yaml.load(text, Loader=_StrictLoader)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
    except (yaml.YAMLError, UnicodeEncodeError) as error:  # a lone surrogate, of a json's string
        raise InputError(f"{what} is not valid yaml: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{what}: a config is a mapping of keys, not a {type(content).__name__}")
    return content


def load_yaml(path: str | Path, above: Sequence[str] = ()) -> dict[str, Any]:
    """A yaml file as a dictionary, with its ``_BASE_`` files merged under it.

    ``above`` are the files that it is a base of. Raises InputError for a missing file, broken yaml,
    a duplicate key or a circle of bases.
    """
    path = Path(path)
    content = load_mapping(read_text(path, "config file", MOST_YAML), str(path))
    base = content.pop(BASE_KEY, None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise InputError(f"{path}: {BASE_KEY} is {base!r}: it names one yaml file")
    above = (*above, os.path.realpath(path))
    if os.path.realpath(path.parent / base.replace("\0", "")) in above:
        raise InputError(f"{path}: {BASE_KEY} leads back to itself")
    if len(above) > MOST_BASES:
        raise InputError(f"{path}: more than {MOST_BASES} files, each the {BASE_KEY} of the next")
    return _merge(load_yaml(path.parent / base, above), content)


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as one level of dotted names; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested keys, what `flatten` is undone by; InputError where one is both."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = name.split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise InputError(f"{name}: {part} has a value, {node!r}, and keys below it")
        node[last] = value
    return tree


def read_overrides(words: Sequence[str], known: Iterable[str]) -> list[tuple[str, str]]:
    """The KEY VALUE pairs of a command line; InputError for a key that is not known."""
    if len(words) % 2:
        raise InputError(
            f"overrides come as KEY VALUE pairs: {words[-1]!r} has no value; options such as "
            "--resume stand before them"
        )
    known = list(known)
    for key in words[::2]:
        if key not in known:
            like = next(one for one in known if "." in one)
            hint = did_you_mean(key, known) or f": keys are like {like}"
            if key.startswith("--"):
                hint = ": options stand before the KEY VALUE pairs"
            raise InputError(f"unknown key {key} on the command line{hint}")
    return list(zip(words[::2], words[1::2], strict=True))


def parse_value(text: str) -> Any:
    """What is meant by a typed value: a literal, true or false, else the text itself."""
    try:
        value = ast.literal_eval(text)
        str(value)  # a number of 5,000 digits cannot be shown
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)
    return list(value) if isinstance(value, tuple) else value


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """ ": did you mean X?" for a misspelt name; empty where no known one is near it."""
    near = difflib.get_close_matches(name, list(known), n=most)
    return f": did you mean {' or '.join(near)}?" if near else ""
