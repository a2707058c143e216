"""Finding JPEGs whose compressed data are damaged inside, which decoders pass over in silence.

libjpeg fills what it cannot decode with gray and warns on a terminal, and no library of Python's
tells that to its caller. But a whole scan ends in its last byte: before that byte is given the last
row of pixels is not decoded, and with it, it is.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image as PIL
from PIL.JpegImagePlugin import JpegImageFile

# A message for people who meet one.
DAMAGED = "the JPEG is damaged inside; it is used as it decodes"

LOOKAHEAD = bytes(8)  # that libjpeg's decoder holds before it takes the last bits
# Markers of the image's end, and of what may stand between two scans.
END, BETWEEN_SCANS = 0xD9, (0xC4, 0xDA, 0xDB, 0xDC, 0xDD)
EIGHTH = 64  # pixels of width from which an eighth of the size has rows of enough pixels


def is_damaged(data: bytes) -> bool:
    """Whether an encoded image is a JPEG of one scan that ends too early or too late.

    False for any other format, progressive JPEGs among them. It takes most of a decoding.
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    try:
        stream = io.BytesIO(data)
        with JpegImageFile(stream) as image:
            start = stream.tell()  # of the scan
            return "progressive" not in image.info and not _is_whole(image, data, start)
    except Exception:  # of a kind that Pillow does not know
        return False


def _is_whole(image: JpegImageFile, data: bytes, start: int) -> bool:
    scan = np.frombuffer(data, np.uint8, offset=start)
    marks = np.flatnonzero(scan[:-1] == 0xFF)
    after = scan[marks + 1]
    # 0xFF stands for itself before 0; restarts, D0 to D7, and fill bytes belong to the scan
    first = np.flatnonzero((after != 0) & ((after < 0xD0) | (after > 0xD7)) & (after != 0xFF))[:1]
    if not len(first) or int(after[first[0]]) not in (END, *BETWEEN_SCANS):
        return False
    if after[first[0]] != END:
        return True  # there are several scans
    end = start + int(marks[first[0]])
    if image.width >= EIGHTH:
        image.draft("L", (image.width // 8, max(image.height // 8, 1)))
    codec, box, _, options = image.tile[0]
    decoder = PIL._getdecoder(image.mode, codec, options, image.decoderconfig)
    stripes = np.resize(np.array([13, 110, 207], np.uint8), image.width)  # no picture has them
    rows = PIL.fromarray(np.tile(stripes, (image.height, 1))).convert(image.mode)
    decoder.setimage(rows.im, box)
    last = (0, image.height - 1, image.width, image.height)
    blank = rows.crop(last).tobytes()
    taken, error = decoder.decode(data[: end - 1])
    if error or rows.crop(last).tobytes() != blank:
        return False
    _, error = decoder.decode(data[taken:end] + LOOKAHEAD)
    return not error and rows.crop(last).tobytes() != blank
