"""Which network in a file is meant: as a format says, else a whole ResNet by its names alone.

Such a ResNet may lie behind any prefix, in any dictionary of the file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from moco_det.foundation.commands import command
from moco_det.foundation.errors import InputError
from moco_det.weights.architectures import (
    TIMM_BY_NAME,
    UnknownArchitecture,
    deduce,
    variant,
)
from moco_det.weights.containers import Contents
from moco_det.weights.formats import BY_NAME, FORMATS, Format
from moco_det.weights.pickled_names import Stub
from moco_det.weights.recognition import (
    START,
    FormatMatch,
    another_network,
    classify_keys,
    first_keys,
    matching_formats,
    nearest_format,
    table_at,
    unclaimed,
)
from moco_det.weights.tensors import tensors_of

# vocabulary -> the names that a ResNet is found by: its stem and its first block
FIRST = {
    "torchvision": START,
    "children": ("0.weight", "4.0.conv1.weight"),
    "detectron2": ("stem.conv1.weight", "res2.0.conv1.weight"),
}
# vocabulary -> how the parts of the network itself are called, which are no head
OWN = {
    "torchvision": r"(conv|bn|layer)\d|stem|downsample",
    "children": r"[0-7]\.",
    "detectron2": r"stem\.(?!fc)|res\d\.",
}
DEPTH = 4  # of dictionaries in one another
MOST_ENTRIES = 50_000  # of all that are looked into
MOST_FOUND = 16  # ResNets; no file has as many


@dataclass(frozen=True)
class FoundResNet:
    """A ResNet behind `prefix` in the dictionary at `place`; `why` says what it lacks, if it does.

    Every other tensor of the dictionary is head, but for parts of a network of another kind.
    """

    place: str
    prefix: str
    match: FormatMatch
    architecture: str
    why: UnknownArchitecture | None

    @property
    def name(self) -> str:
        """What --prefix names it by, where the prefix alone would not do."""
        return f"{self.place}:{self.prefix}"

    @property
    def where(self) -> str:
        """In words, for messages."""
        place = f" in {self.place!r}" if self.place else ""
        return (f"behind {self.prefix!r}" if self.prefix else "without a prefix") + place


def choose_match(
    contents: Contents, source_format: str | None, prefix: str | None
) -> tuple[FormatMatch, FoundResNet | None]:
    """The format that fits and claims every tensor, else the ResNet that is there by its names."""
    path, root = contents.path, contents.root
    forced = BY_NAME.get(source_format or "")
    rows = [forced] if forced else [f for f in FORMATS if not f.by_name_only]
    found = _known(root, rows) if prefix is None else []
    resnet = None
    if len(found) != 1 or unclaimed(found[0]):
        searched = forced is None or forced.behind
        resnet = find_resnet(path, root, forced, prefix) if searched else None
    if resnet is not None and (len(found) != 1 or not unclaimed(resnet.match)):
        found = [resnet.match]
    else:
        resnet = None
    if len(found) == 1:
        other = another_network(contents.entries, found[0])
        if other is not None:
            raise UnknownArchitecture(other)
        if resnet is not None and resnet.why is not None:
            raise UnknownArchitecture(f"{resnet.where}: {resnet.why}")
        return found[0], resnet
    reason = variant(key for _, table in dictionaries(root) for key in tensors_of(table))
    if reason is not None:
        raise UnknownArchitecture(reason)
    raise InputError(_why_unknown(contents, rows, found, source_format))


def _known(root: Any, rows: Sequence[Format]) -> list[FormatMatch]:
    """The formats that fit the outermost dictionaries that one fits."""
    depths = groupby(dictionaries(root), lambda one: one[0].count("/") + bool(one[0]))
    for _, level in depths:
        found = [match for _, table in level for match in matching_formats(table, rows)]
        if found:
            return found
    return []


def _why_unknown(
    contents: Contents,
    rows: Sequence[Format],
    found: Sequence[FormatMatch],
    source_format: str | None,
) -> str:
    """What a file is that no format and no ResNet's names fit, or several, and the way out."""
    path, root = contents.path, contents.root
    seen = first_keys(root)
    seen = seen if seen.isprintable() else ascii(seen)
    if found:
        names = sorted({match.format.name for match in found})
        return (
            f"{path} holds more than one encoder that could be meant (as {', '.join(names)}; "
            f"first keys {seen}): save only that one"
        )
    stamp = contents.entries.get("format")
    if isinstance(stamp, str) and stamp.startswith("moco-det/") and stamp != "moco-det/1":
        return f"{path} is {stamp[:40]}, which a newer version wrote: update moco-det"
    places = ("model", "net", "network", "encoder", "state_dict")
    likely = [root, *(contents.entries.get(key) for key in places)]
    whole = next((value for value in likely if isinstance(value, Stub)), None)
    if whole is not None:
        return (
            f"{path} holds a whole {whole.origin} object, which is not opened: "
            "save its state_dict()"
        )
    if "torch.storage._load_from_bytes" in contents.foreign:
        return (
            f"{path} holds tensors that were pickled without torch.save: load it with what made "
            "it, and torch.save the state_dict"
        )
    if source_format:
        return (
            f"{path} is not a {source_format} checkpoint: found {seen}; "
            "leave --from out to have the format recognised"
        )
    near = nearest_format(root, rows)
    return (
        f"{path} is of no known format: found {seen}; {near + '; ' if near else ''}known are "
        f"a whole ResNet behind any prefix and what {command('convert-weights')} --help lists: "
        f"save the backbone's state_dict(); {TIMM_BY_NAME}"
    )


# A ResNet by its names ----------------------------------------------------------------------


def dictionaries(root: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The root and the dictionaries below it, the outermost first, each once, by "key/key"."""
    waiting = [("", root)] if isinstance(root, dict) else []
    seen: set[int] = set()
    entries = 0
    for place, table in waiting:  # grows while it is read
        if id(table) in seen:
            continue
        if entries > MOST_ENTRIES:
            return
        seen.add(id(table))
        entries += 1 + len(table)
        yield place, table
        if place.count("/") + bool(place) < DEPTH:
            waiting += [
                (f"{place}/{key}" if place else key, inner)
                for key, inner in table.items()
                if isinstance(inner, dict) and isinstance(key, str) and key.isprintable()
            ]


def find_resnet(
    path: Path, root: Any, row: Format | None, prefix: str | None
) -> FoundResNet | None:
    """The one ResNet of a file, or the one that `prefix` names; None where there is none.

    Whole ones go before others. `row` is the format that was named, which gives the pixels.
    Raises InputError for several, and for a prefix that none has.
    """
    found = list(islice(_search(root, row), MOST_FOUND))
    found = [one for one in found if one.why is None] or found
    if prefix is not None:
        chosen = [one for one in found if prefix.rstrip(".") in _names(one)]
        if not chosen and found:
            raise InputError(
                f"{path} has no ResNet behind --prefix {shlex.quote(prefix)}: "
                f"{_listed(found)}; name one of these, or leave --prefix out"
            )
        found = chosen
    if len(found) > 1:
        one, other = (shlex.quote(word) for word in _words(found)[:2])
        asked = [] if row is None else ["--from", row.name]
        raise InputError(
            f"{path} holds {len(found)} ResNets, {_listed(found)}: choose one, as in "
            f"`{convert_command(path, *asked)} --prefix {one}`, or --prefix {other}"
        )
    return found[0] if found else None


def convert_command(path: Path, *options: str) -> str:
    """What to type to convert a file; the output is never the file itself."""
    output = Path("weights") / f"{file_stem(path)}.pkl"
    if output.resolve() == path.resolve():
        output = output.with_name(f"{file_stem(path)}_converted.pkl")
    words = [shlex.quote(str(word)) for word in (path, output, *options)]
    return f"{command('convert-weights')} {' '.join(words)}"


def file_stem(path: Path) -> str:
    """A checkpoint's name without the suffixes: "moco" of moco.pth.tar."""
    return (
        re.sub(r"(\.(pth?|tar|pkl|ckpt|torch|safetensors|npz|bin))+$", "", path.name) or "weights"
    )


def _search(root: Any, row: Format | None) -> Iterator[FoundResNet]:
    """Every ResNet in the vocabularies of a format, by default in all."""
    base = row or Format(name="resnet", encoders={}, head=[], pixels=None)
    for place, inner in dictionaries(root):
        if not tensors_of(inner):
            continue
        table = table_at(inner, "")
        for names in row.behind if row else FIRST:
            stem, block = FIRST[names]
            starts = [key.removesuffix(stem) for key in table if key.endswith(stem)]
            for prefix in starts:
                if f"{prefix}{block}" not in table or not re.fullmatch(r"(.*\.)?", prefix):
                    continue
                # a name that is no text, or the compiler's beside the plain one, is nobody's
                beside = rf"(?!\[|(.*\.)?_orig_mod\.|{re.escape(prefix)}({OWN[names]})).*"
                form = replace(
                    base, encoders={"query": [re.escape(prefix)]}, names=names, head=[beside]
                )
                keys = classify_keys(form, "query", table)
                architecture, why = "", None
                try:
                    shapes = {name: tensor.shape for name, tensor in keys.tensors.items()}
                    architecture = deduce(shapes)
                except UnknownArchitecture as error:
                    why = error
                yield FoundResNet(place, prefix, FormatMatch(form, table), architecture, why)


def _names(one: FoundResNet) -> tuple[str, str]:
    return one.prefix.rstrip("."), one.name.rstrip(".")


def _words(found: list[FoundResNet]) -> list[str]:
    """What --prefix takes for each."""
    prefixes = [one.prefix for one in found]
    return [one.prefix if prefixes.count(one.prefix) == 1 else one.name for one in found]


def _listed(found: list[FoundResNet]) -> str:
    texts = [
        f"{'an incomplete one' if one.why else one.architecture} behind {word!r}"
        for one, word in zip(found, _words(found), strict=True)
    ]
    return " and ".join(texts[:6]) + (" and more" if len(texts) > 6 else "")
