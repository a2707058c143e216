"""Files that are plainly something else than a checkpoint, and what to do about each."""

from __future__ import annotations

import codecs

NO_CHECKPOINT = (
    "is not a checkpoint: its first bytes are none of torch's, pickle's or safetensors': "
    "name another file, or fetch it again"
)


def mistaken_for(start: bytes) -> str:
    """What a file is by its first 512 bytes, with the cure; NO_CHECKPOINT where nothing tells."""
    text = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if text.startswith((b"<!", b"<html", b"<head", b"<?xml")):
        return "is a web page, not a checkpoint: the download failed, fetch the file itself again"
    if text.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights: run `git lfs pull`"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"Rar!", b"7z\xbc\xaf")):
        return "is a compressed archive: unpack it and name the checkpoint inside"
    if start[257:262] == b"ustar":
        return (
            "is a tar archive: unpack it and name the checkpoint inside (a file that torch 0.1 "
            "saved as tar has to be loaded and saved by torch once)"
        )
    if start.startswith(b"\x89HDF"):
        return "is an HDF5 file (Keras?): save the network's state_dict with torch"
    return NO_CHECKPOINT
