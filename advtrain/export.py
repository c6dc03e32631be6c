"""A trained model in a folder of its own, to be run where this package is not installed.

model.pt2           the network with its weights, as a program of `torch.export`
model.safetensors   the weights alone
README.md           what the model is, and how to run it
model.json          the same for programs, and the SHA-256 of the other files; written last
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_model, check_threat
from .dataset import Dataset
from .defense import Defense
from .errors import ModelError, bad, check_flag, check_kind, check_path
from .files import atomic, check_free_of, check_writable, write_json
from .models import Classifier, Normalize
from .models.spec import spec_of
from .modes import place
from .provenance import version
from .recipe import check_defense, check_network
from .report import NORMS
from .rng import Rng
from .threat import Threat, format_eps
from .weights import save_weights

FORMAT = 1
CLOSE = 1e-4
"""How far the program's logits may be from the model's, as a share of the largest."""


def export(
    model: nn.Module,
    path: str | Path,
    *,
    data: Dataset | None = None,
    shape: tuple[int, int, int] | None = None,
    threat: Threat | None = None,
    defense: Defense | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model so that it runs with PyTorch alone: a program, its weights, and what one has to know about them.

    The program takes any number of images at once, (B, C, H, W) float32 in [0, 1], and returns logits; normalisation is
    part of it. It is in evaluation mode for good, and it is compared with the model before it is written.

    The program, `model.pt2`, is an archive that `torch.export.load` may unpickle parts of: **whoever gives you such a
    file can make it run code**, so load only what you trust, after comparing its SHA-256. `model.safetensors` holds
    numbers alone. This package writes programs and never loads one.

    Args:
        model: the network; it is copied, and left as it is.
        path: the folder.
        data: what it classifies: gives the shape of the images, and the names of the classes.
        shape: (C, H, W) of the images, if `data` is not given and the model is not one of `build_model`.
        threat: the threat model that it was trained against, for the description.
        defense: what it was trained with, for the description; it brings its own threat.
        overwrite: replace what an earlier export has left in the folder.

    Returns:
        The folder.

    Raises:
        ArgumentError: the shape is not known.
        ModelError: the model cannot be exported, such as one whose path depends on the values of its images.
        FileError: the folder cannot be written, or holds an earlier export.
    """
    check_network(model, "export(model, path)")
    folder = check_path("path", path, "folder")
    check_flag("overwrite", overwrite)
    if threat is not None:
        check_threat(threat)
    if defense is not None:
        check_defense("defense", defense, "export(model, path)")
    if data is not None:
        check_kind("data", data, Dataset, "at.load_data(name), or at.as_dataset((x, y)), makes one")
    place(model)  # refuses one of the meta device
    network = copy.deepcopy(getattr(model, "_orig_mod", model)).cpu().eval()
    own: Any = network.shape if isinstance(network, Classifier) else None
    shape = data.shape if data is not None else shape or own
    if not isinstance(shape, (tuple, list)) or len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        bad("shape", shape, "(C, H, W)", "the model does not tell it: give data, or shape=(3, 32, 32)")
    images = Rng(0, "export").uniform(torch.empty(3, *shape, dtype=place(network)[1]), 0, 1)
    classes = check_model(network, images, probabilities=True)
    program = _program(network, images)
    check_free_of(folder, "config.json", "a run, whose weights these would replace")
    files = ("model.pt2", "model.safetensors", "README.md")
    for name in ("model.json",) if (folder / "model.json").exists() else files:
        check_writable(folder, holding=name, overwrite=overwrite)
    (folder / "model.json").unlink(missing_ok=True)  # a folder without it is not finished
    with atomic(folder / "model.pt2") as partial, open(partial, "wb") as file:
        torch.export.save(program, file)
    save_weights(network, folder / "model.safetensors")
    layer = next((module for module in network.modules() if isinstance(module, Normalize)), None)
    threat = threat if defense is None else defense.threat
    about = {
        "format": FORMAT,
        "input": {"shape": ["B", *shape], "dtype": str(images.dtype).removeprefix("torch."), "range": [0, 1]},
        "output": {"logits": classes, "classes": list(data.classes) if data is not None else None},
        "normalisation": layer and {"mean": layer.mean.flatten().tolist(), "std": layer.std.flatten().tolist()},
        "threat": threat and dataclasses.asdict(threat),
        "defense": defense and defense.config,
        "data": data and data.name,
        "model": spec_of(network) or {"class": type(network).__name__},
        "made_with": {"torch": torch.__version__, "advtrain": version()},
    }
    with atomic(folder / "README.md") as partial:
        partial.write_text(_readme(about, threat), encoding="utf-8")
    about["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    write_json(folder / "model.json", about)
    return folder


def _program(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The network as a program for any number of images, compared with it on one image and on all of `images`."""
    count = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch's own parts about one another
            program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: count},))
            found = [(network(part), program.module()(part)) for part in (images[:1], images)]
    except Exception as error:
        what = str(error).strip().splitlines() or [repr(error)]
        raise ModelError(
            f"torch.export cannot follow {type(network).__name__}: {type(error).__name__}: {what[0]}. Its forward must "
            "not depend on the values of the images, nor on how many there are"
        ) from error
    for own, theirs in found:
        if not torch.allclose(own, theirs, rtol=0, atol=CLOSE * float(own.abs().max())):
            raise ModelError(
                f"the program of {type(network).__name__} gives other logits than it, by up to "
                f"{float((own - theirs).abs().max()):.2g}: does it draw at random, or change while it answers?"
            )
    return program


README = """\
# {title}

`model.pt2` is the network as a program that needs PyTorch alone:

```python
import torch

model = torch.export.load("model.pt2").module()
logits = model(images)  # images: (B, {channels}, {height}, {width}) {dtype}, pixels in [0, 1]
```

- **Input:** {channels} × {height} × {width} pixels in [0, 1], any number of images at once. {normalisation}
- **Output:** {output}
- **Training:** {training}
- **Weights alone:** `model.safetensors`, of {architecture}.
- **Mode:** evaluation, on the CPU. For a GPU,
  `torch.export.passes.move_to_device_pass(torch.export.load("model.pt2"), "cuda").module()`.

`torch.export.load` can run code that somebody has put into a `.pt2` file. Compare the SHA-256 in `model.json` with one
that reached you by another way, and load the file only if you trust who made it. A `.safetensors` file holds numbers
alone, and nothing in it can be run.
"""


def _readme(about: dict[str, Any], threat: Threat | None) -> str:
    """The description for people, in Markdown."""
    _, channels, height, width = about["input"]["shape"]
    layer, output, defense = about["normalisation"], about["output"], about["defense"]
    numbers = layer and [", ".join(f"{number:.4g}" for number in layer[key]) for key in ("mean", "std")]
    names = "" if not output["classes"] else ": " + ", ".join(output["classes"])
    ball = threat and f"{NORMS[threat.norm]} perturbations of at most ε = {format_eps(threat.eps)}"
    method = defense and f"`{defense['name']}`" + (f" on {about['data']}" if about["data"] else "")
    spec = about["model"]
    return README.format(
        title=f"A classifier trained against {ball}" if ball else "A classifier of images",
        channels=channels, height=height, width=width, dtype=about["input"]["dtype"],
        normalisation=f"The program subtracts the mean ({numbers[0]}) and divides by the deviation ({numbers[1]})."
        if numbers else "Any normalisation is part of the program.",
        output=f"{output['logits']} logits, one for each class{names}.",
        training=f"{method}, against {ball}." if method else f"against {ball}." if ball else "not recorded.",
        architecture="the network that `advtrain.build_model(**spec)` makes, `spec` being `model` in `model.json`"
        if "name" in spec else f"the class `{spec['class']}`",
    )  # fmt: skip
