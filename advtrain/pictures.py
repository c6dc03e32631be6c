"""Whatever a reader's function draws, as one picture: figures, image arrays, PNG files."""

from __future__ import annotations

import sys
import traceback
from base64 import b64encode
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .errors import bad

SIDE = 280  # pixels that the longer side of an image array is enlarged to, about: it fits on a phone
ROUNDING = 8  # levels of 256 by which a palette may move a channel of a figure's pixel; of an image array's, by none
EXACT = "exact"  # marks, in `Image.info`, an image in which every level counts, such as a perturbation of 2/255
DRAWABLE = "a matplotlib Figure, an image array in [0, 1], PNG bytes or an HTML string"


def render(drawn: Any, source: str) -> Image.Image | str:
    """What `draw` returned, as an opaque image or as HTML; `source` names it in errors."""
    if isinstance(drawn, str) and drawn.strip():
        return drawn
    if hasattr(drawn, "shape"):
        return from_array(drawn, source)
    if hasattr(drawn, "savefig"):
        quickly = {"compress_level": 1}  # it is decoded at once
        drawn.savefig(file := BytesIO(), format="png", metadata={"Software": None}, pil_kwargs=quickly)
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close(drawn)  # or the notebook would show it once more
        drawn = file.getvalue()
    if not isinstance(drawn, bytes):
        bad(source, drawn, DRAWABLE, f"let draw end with `return {'axes.' * hasattr(drawn, 'figure')}figure`")
    try:
        image = Image.open(BytesIO(drawn), formats=["PNG"])
        image.load()
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more, whatever is damaged
        said = str(error).replace(" <_io.BytesIO", "\0").partition("\0")[0]
        bad(source, drawn[:8], f"the beginning of a readable PNG file of {len(drawn)} bytes", said)
    return opaque(image)  # for dark pages too


def opaque(image: Image.Image) -> Image.Image:
    """An image as RGB of 8 bits: grey of 16 bits, which Pillow would clip, is scaled; what is transparent is white."""
    if image.mode.startswith("I"):
        image = Image.fromarray(np.round(np.asarray(image).astype(float) / 257).astype(np.uint8))
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def from_array(array: Any, source: str) -> Image.Image:
    """An image with crisp pixels, each as many times larger as fits on a phone."""
    try:
        if hasattr(array, "detach"):
            array = array.detach().cpu()
            array = array.double() if array.is_floating_point() else array  # NumPy has no bfloat16
        array = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        bad(source, type(array).__name__, DRAWABLE, str(error))
    shape = array.shape
    if array.dtype.kind not in "fb":
        hints = {"c": "draw its absolute value or its real part", "O": "let draw end with `return figure`"}
        hint = hints.get(array.dtype.kind, "divide by 255, or call .astype(float) if it holds 0 and 1")
        bad(f"{source}.dtype", str(array.dtype), f"floating, as of {DRAWABLE}", hint)
    if array.ndim == 3 and shape[0] in (1, 3):
        array = array[0] if shape[0] == 1 else array.transpose(1, 2, 0)
    if array.size == 0 or not (array.ndim == 2 or array.ndim == 3 and array.shape[2] == 3):
        bad(f"{source}.shape", shape, "(H, W), (1, H, W), (3, H, W) or (H, W, 3)")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN too
        hint = "divide by 255" if low >= 0 and 2 < high <= 255 else "clamp it, look for NaN; show δ as 0.5 + δ / (2ε)"
        bad(f"(min, max) of {source}", (low, high), "in [0, 1]", hint)
    image = Image.fromarray(np.round(array.astype(float) * 255).astype(np.uint8)).convert("RGB")
    image = ImageOps.scale(image, max(1, SIDE // max(image.size)), Image.Resampling.NEAREST)
    image.info = {EXACT: True}
    return image


def sheet(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at the upper left of a white sheet of at least (width, height)."""
    right, below = (max(0, whole - part) for whole, part in zip(size, image.size, strict=True))
    expanded = ImageOps.expand(image, (0, 0, right, below), "white")
    expanded.info = image.info
    return expanded


def png(image: Image.Image) -> bytes:
    """The same bytes each time, with no date and no name of a program; a palette where it is smaller and harmless."""
    exact = EXACT in image.info
    candidates = [image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)]
    if exact:
        candidates.append(image.convert("L"))
    candidates = [each for each in candidates if _moved(image, each) <= (0 if exact else ROUNDING)]
    if exact or not candidates:  # a figure in all its colours is never the smaller file, and takes long to compress
        candidates.append(image)
    files = []
    for candidate in candidates:
        candidate.save(file := BytesIO(), format="PNG", optimize=True)
        files.append(file.getvalue())
    return min(files, key=len)


def tag(image: Image.Image, alt: str) -> str:
    """An image as HTML that brings its pixels along; `alt` says what it shows, for those who cannot see it."""
    source = f"data:image/png;base64,{b64encode(png(image)).decode()}"
    size = f'width="{image.width}" height="{image.height}" style="max-width:100%;height:auto"'
    return f'<img alt="{escape(alt)}" src="{source}" {size}>'


def complaint() -> str:
    """The exception that is being handled, as HTML that is read aloud at once."""
    return f'<pre role="alert" style="white-space:pre-wrap">{escape(traceback.format_exc())}</pre>'


def strip(images: Any, side: int = 48) -> Image.Image:
    """Images (N, C, H, W) of floats in [0, 1] side by side, the longer side of each about `side` pixels."""
    gap, tiles = 3, []
    for array in images.detach().cpu().double().numpy():
        channels = array.repeat(3, 0) if len(array) == 1 else array
        tile = Image.fromarray(np.round(channels.transpose(1, 2, 0) * 255).astype(np.uint8))
        larger = side // max(tile.size)
        tile = (
            ImageOps.scale(tile, larger, Image.Resampling.NEAREST) if larger else ImageOps.contain(tile, (side, side))
        )
        tiles.append(tile)
    wide, high = tiles[0].size
    sheet = Image.new("RGB", (len(tiles) * (wide + gap) - gap, high), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number * (wide + gap), 0))
    return sheet


def _moved(image: Image.Image, candidate: Image.Image) -> int:
    """Levels by which some channel of some pixel differs at most."""
    before, after = (np.asarray(each, dtype=np.int16) for each in (image, candidate.convert("RGB")))
    return int(np.abs(before - after).max())
