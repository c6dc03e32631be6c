"""Whatever a reader's function draws, as one picture: figures, image arrays, PNG files."""

from __future__ import annotations

import sys
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .errors import bad

SIDE = 280  # pixels that the longer side of an image array is enlarged to, about: it fits on a phone
ROUNDING = 8  # levels of 256 by which a palette may move a channel of a pixel: less than the eye sees
DRAWABLE = "a matplotlib Figure, an image array in [0, 1], PNG bytes or an HTML string"


def render(drawn: Any, source: str) -> Image.Image | str:
    """What `draw` returned, as an opaque image or as HTML; `source` names it in errors."""
    if isinstance(drawn, str) and drawn.strip():
        return drawn
    if hasattr(drawn, "shape"):
        return from_array(drawn, source)
    if hasattr(drawn, "savefig"):
        drawn.savefig(file := BytesIO(), format="png", metadata={"Software": None})
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close(drawn)  # or the notebook would show it once more
        drawn = file.getvalue()
    if not isinstance(drawn, bytes):
        bad(source, drawn, DRAWABLE, f"let draw end with `return {'axes.' * hasattr(drawn, 'figure')}figure`")
    try:
        image = Image.open(BytesIO(drawn), formats=["PNG"]).convert("RGBA")
    except OSError:
        bad(source, drawn[:8], "the beginning of a PNG file")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")  # for dark pages too


def from_array(array: Any, source: str) -> Image.Image:
    """An image with crisp pixels, each as many times larger as fits on a phone."""
    array = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    shape = array.shape
    if array.ndim == 3 and shape[0] in (1, 3):
        array = array[0] if shape[0] == 1 else array.transpose(1, 2, 0)
    if array.size == 0 or not (array.ndim == 2 or array.ndim == 3 and array.shape[2] == 3):
        bad(f"{source}.shape", shape, "(H, W), (1, H, W), (3, H, W) or (H, W, 3)")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN too
        hint = "divide by 255" if low >= 0 and 2 < high <= 255 else "clamp it, look for NaN; show δ as 0.5 + δ / (2ε)"
        bad(f"(min, max) of {source}", (low, high), "in [0, 1]", hint)
    image = Image.fromarray(np.uint8(np.round(array.astype(float) * 255))).convert("RGB")
    return ImageOps.scale(image, max(1, SIDE // max(image.size)), Image.Resampling.NEAREST)


def png(image: Image.Image) -> bytes:
    """The same bytes each time, with no date and no name of a program; a palette where it is smaller and harmless."""
    palette, files = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE), []
    harmless = abs(np.int16(image) - np.int16(palette.convert("RGB"))).max() <= ROUNDING
    for candidate in [image, palette] if harmless else [image]:
        candidate.save(file := BytesIO(), format="PNG", optimize=True)
        files.append(file)
    return min((file.getvalue() for file in files), key=len)
