"""Images as records name them: paths and data URIs, opened, turned upright, on white and in RGB, or refused."""

from __future__ import annotations

import base64
import binascii
import difflib
import io
import os
import re
import stat
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lmflow.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

MARK = "<image>"
"""Where an image stands in a text."""
MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: one would take 200 MB and more."""
FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI"),
    *("SGI", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
)
"""Pillow's formats that are read: none that starts an outside program, as PostScript does, or asks a plugin."""
MAX_BYTES = 500_000_000
"""Of a file; more is no image of so many pixels."""
MAX_ASPECT = 100
"""Longer side over shorter; a strip would be resized into something enormous, or into nothing."""


def locate(reference: str, folder: Path | None, *, allow_outside: bool = True) -> str:
    """A record's reference as a path from here, or as it is when it is a data URI. `folder` is where paths begin.

    Raises DataError for an address on the network, as nothing is downloaded, and unless `allow_outside` for a path that
    leads out of the folder; what a link in it leads to is the user's own affair.
    """
    if reference.startswith("data:"):
        return reference
    if re.match(r"https?://", reference):
        raise DataError(f"{reference} is an address on the network; download the image and give its path")
    path = Path(reference.removeprefix("file://"))
    if folder is None:
        return str(path.expanduser())
    found = folder / (path.expanduser() if allow_outside else path)
    if not allow_outside and not Path(os.path.abspath(found)).is_relative_to(os.path.abspath(folder)):
        raise DataError(
            f"image {reference} lies outside {folder}; name the images' folder with --data.image_folder, or trust the "
            "data's paths with --data.allow_outside true"
        )
    return str(found)


def read_bytes(reference: str) -> bytes:
    """The bytes of a path or data URI. Raises DataError when there are none."""
    if reference.startswith("data:"):
        return _from_uri(reference)
    path = Path(reference)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"image {path} is no file")
        if state.st_size > MAX_BYTES:
            raise DataError(f"image {path} has {state.st_size:,} bytes, more than {MAX_BYTES:,}; scale it down")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"image {path} does not exist{_nearest(path)}") from None
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error.strerror}") from None


def open_image(reference: str) -> Image:
    """The image at a path or in a data URI, as `decode` gives it."""
    return decode(read_bytes(reference), shown(reference))


def decode(data: bytes, name: str) -> Image:
    """An image's bytes as RGB, upright as its EXIF orientation says, what is transparent on white.

    Of an animation the first frame is taken; 16-bit greys are scaled to 8 bits. Raises DataError naming the image
    when it is none, is cut off, or is too large or too thin.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warning of large images; the limit here is lower
            image = Image.open(io.BytesIO(data), formats=_formats())
            _check_size(image.size, name)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        what = "it is empty" if not data else f"it begins with {data[:8]!r}"
        raise DataError(f"image {name} is in no format that can be read: {what}") from None
    except Image.DecompressionBombError:
        raise DataError(f"image {name} is larger than {MAX_PIXELS:,} pixels; scale it down") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's readers raise for broken files
        raise DataError(f"image {name} is damaged: {error}") from None


def check(reference: str) -> None:
    """Raise DataError unless the image can be opened; each is tried once for as long as its file stays the same."""
    if reference.startswith("data:"):
        open_image(reference)
        return
    try:
        state = Path(reference).stat()
    except OSError:
        read_bytes(reference)  # says what is wrong
        return
    problem = _problem(reference, state.st_mtime_ns, state.st_size)
    if problem:
        raise DataError(problem)


def check_marks(content: str, images: Sequence[str], place: str) -> None:
    """Raise DataError unless the text has as many marks as there are images."""
    marks = content.count(MARK)
    if marks != len(images):
        raise DataError(
            f"{place}: {marks} {MARK} in the text and {len(images)} images; there must be one mark for each image"
        )


def shown(reference: str) -> str:
    """How a message names an image: its path, or the beginning of a data URI."""
    return reference if len(reference) <= 200 and not reference.startswith("data:") else f"{reference[:40]}…"


@lru_cache(maxsize=1 << 20)
def _problem(path: str, changed: int, size: int) -> str:
    try:
        open_image(path)
    except DataError as error:
        return str(error)
    return ""


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow reads."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise DataError(f"image {name} has {width} x {height} pixels, more than {MAX_PIXELS:,}; scale it down")
    if max(size) > MAX_ASPECT * min(size):
        raise DataError(f"image {name} is {width} x {height}: too thin to be seen; crop it")


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = image.convert("I")
    if image.mode in ("I", "F"):
        image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_eight_bits(image: Image) -> Image:
    """Greys of 32 bits as 8: whole numbers above 255 are taken for 16 bits, fractions for 0 to 1."""
    import numpy
    from PIL import Image

    values = numpy.asarray(image, dtype=numpy.float64)
    highest = values.max()
    scale = 255 if image.mode == "F" and highest <= 1 else 255 / 65535 if highest > 255 else 1
    return Image.fromarray((values * scale).clip(0, 255).round().astype(numpy.uint8), "L")


def _from_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise DataError(f"image {shown(uri)} is a data URI, but not data:image/…;base64,…")
    try:
        return base64.b64decode(re.sub(r"\s", "", body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image {shown(uri)} is not base64: {error}") from None


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor does the folder {path.parent})"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"; did you mean {near[0]}?" if near else ""
