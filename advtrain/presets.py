"""Published recipes by name: a defense with the constants its authors trained with, and the training around it.

>>> recipe = preset("fast-bat/cifar10-preactresnet18-eps8")
>>> recipe.make().lam
10.0
>>> recipe.fit["epochs"], recipe.fit["lr"]
(20, 0.2)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .defense import Defense
from .defenses import DEFENSES
from .errors import one_of
from .threat import Threat, format_eps


@dataclass(frozen=True)
class Preset:
    """A published recipe.

    Args:
        defense: its name.
        data, model: names of the data set and of the network of this package that stands for the authors'.
        eps: radius of the ℓ∞ threat.
        options: fields of the defense.
        fit: arguments of `fit`.
        model_options: options of the network, and its `normalize`.
        source: paper or code that the constants are from.
        note: where the recipe here is not what was run there.
        tag: ends the label where two sources have a recipe for the same defense, data, network and radius.
    """

    defense: str
    data: str
    model: str
    eps: float
    options: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    note: str = ""
    tag: str = ""

    @property
    def label(self) -> str:
        """Data set, network, radius, and the tag if there is one, such as "cifar10-preactresnet18-eps8-zhang2022"."""
        radius = format_eps(self.eps).replace("/255", "")
        return f"{self.data}-{self.model}-eps{radius}" + f"-{self.tag}" * bool(self.tag)

    @property
    def name(self) -> str:
        """The name it is found by, such as "fast-bat/cifar10-preactresnet18-eps8"."""
        return f"{self.defense}/{self.label}"

    @property
    def summary(self) -> str:
        """Options and training in one line."""
        options = ", ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                            for key, value in self.options.items())  # fmt: skip
        return f"{options or 'defaults'}; {self.fit['epochs']} epochs, lr {self.fit['lr']:g}; {self.source}"

    def make(self, **changes: Any) -> Defense:
        """The defense with these constants.

        Args:
            **changes: fields that should have another value.
        """
        return DEFENSES[self.defense](Threat("linf", self.eps), **{**self.options, **changes})


ZHANG = "OPTML-Group/Fast-BAT@926599d, arXiv 2112.12376"
WONG = "locuslab/fast_adversarial, arXiv 2001.03994"
VIVEK = "val-iisc/SAT-Rx@c98d84e, arXiv 2002.00614"
_ALIGNMENT = {2: 0.036, 4: 0.063, 6: 0.112, 8: 0.2, 10: 0.356, 12: 0.632, 14: 1.124, 16: 2.0}  # λ of GradAlign by 255 ε

# Where what is run here is not what was run there.
_ALL_IMAGES = "the authors train on all 50,000 images, of which load_data keeps 5,000 for validation unless val=0"
_HALF = f"{_ALL_IMAGES}; they compute in float16"
_ONE_START = "the authors select by PGD-50 with 10 starts, fit by PGD-50 with one start"
_SAT_WIDE = (
    "the authors' wide network has biases in its convolutions, Xavier initialisation, shortcuts from the input before "
    "its activation, the stride in a block's second convolution, and momentum 0.9 in its last batch normalisation; "
    "they split 40,000/10,000 and select by I-FGSM of 3 steps"
)
_SAT_MNIST = "the authors split 50,000/10,000 and select by I-FGSM of 3 steps"
_ZHANG_OTHERS = {
    "cifar100": "the authors also turn images by up to 15 degrees",
    "svhn": "the authors leave out the last batch that is not full",
    "tiny-imagenet": "the authors split the validation part in two, and normalise by ImageNet's mean and deviation",
}
_ZHANG_WIDE = (
    "the authors' WRN-28-10 has a block more in each stage than its name says, hence depth 34, draws its weights with "
    "the input's variance and begins with a last layer of zeros"
)
_NUAT = (
    "NuAT-WA; the authors' network is a ResNet-18 without normalisation; they split 49,000/1,000 and choose the "
    "checkpoint by I-FGSM of 7 steps"
)
_RVS = (
    "201,000 steps are 286 epochs of 45,000 images; the authors' network pads its shortcuts with zeros where here they "
    "are 1x1 convolutions, has 1e-3 for the eps of batch normalisation, and places its first activation and draws its "
    "last layer in another way"
)

_SGD = {"batch_size": 128, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
_WONG = {**_SGD, "epochs": 15, "lr": 0.2, "schedule": "fast-bat"}
_FAST_BAT = {**_SGD, "epochs": 20, "lr": 0.2, "schedule": "fast-bat", "select": "best", "val_steps": 50}
_SAT = {**_SGD, "schedule": "sat", "select": "best"}
_MNIST = {**_SAT, "epochs": 20, "batch_size": 32, "lr": 0.01}
_WIDE = {**_SAT, "epochs": 100, "batch_size": 64, "lr": 0.1}


def _published() -> list[Preset]:
    found = []

    def cifar(
        defense: str, eps: int, options: dict[str, Any], fit: dict[str, Any], source: str, note: str = "", **rest: Any
    ) -> None:
        where = {"data": "cifar10", "model": "preactresnet18", **rest}
        found.append(Preset(defense, eps=eps / 255, options=options, fit=fit, source=source, note=note, **where))

    cifar("fast-at", 8, {"rel_step": 1.25}, _WONG, WONG, _HALF)
    start_at_zero = f"their script with its start at zero and a step of ε, which is not its default; {_HALF}"
    cifar("fgsm", 8, {"rel_step": 1.0}, _WONG, WONG, start_at_zero)
    cifar("free", 8, {"replays": 8}, {**_WONG, "epochs": 11, "lr": 0.04}, WONG, _HALF)
    for eps in (8, 16):  # FAST-BAT and what its authors compare it with
        tag = {"tag": "zhang2022"}  # for those of which other authors' recipes are here too
        cifar("fast-bat", eps, {}, _FAST_BAT, ZHANG, _ONE_START)
        cifar("fast-at", eps, {"rel_step": 1.25}, _FAST_BAT, ZHANG, _ONE_START, **(tag if eps == 8 else {}))
        cifar("pgd", eps, {"steps": 2, "rel_step": 0.5}, _FAST_BAT, ZHANG, f"PGD-2-AT; {_ONE_START}")
        alignment = {"lam": _ALIGNMENT[eps], "code": "fast-bat"}
        cifar("gradalign", eps, alignment, _FAST_BAT, ZHANG, f"FAST-AT-GA; {_ONE_START}", **tag)
    for data, note in _ZHANG_OTHERS.items():
        cifar("fast-bat", 8, {}, _FAST_BAT, ZHANG, f"{note}; {_ONE_START}", data=data)
    for model in ("preactresnet34", "preactresnet50"):
        cifar("fast-bat", 8, {}, _FAST_BAT, ZHANG, _ONE_START, model=model)
    wrn = {"model": "wideresnet", "model_options": {"depth": 34, "dropout": 0.1}}
    cifar("fast-bat", 8, {}, _FAST_BAT, ZHANG, f"{_ZHANG_WIDE}; {_ONE_START}", **wrn)
    for eps, lam in _ALIGNMENT.items():
        fit = {**_SGD, "epochs": 30, "lr": 0.3, "schedule": "gradalign"}
        cifar("gradalign", eps, {"lam": lam}, fit, "tml-epfl/understanding-fast-adv-training, arXiv 2007.02617", _HALF)
    for data in ("cifar10", "cifar100"):
        for eps in range(2, 17, 2):
            fit = {**_SGD, "epochs": 30, "lr": 0.2, "schedule": "n-fgsm"}
            cifar("n-fgsm", eps, {}, fit, "pdejorge/N-FGSM, arXiv 2202.01181", _ALL_IMAGES, data=data)
    cifar(
        "nuat", 8, {"lam": 4.0},
        {**_SGD, "epochs": 100, "batch_size": 64, "lr": 0.1, "schedule": "nuat", "ema": 0.9998},
        "val-iisc/NuAT, NuAT_WA_cifar10.py", _NUAT, model_options={"normalize": None},
    )  # fmt: skip
    wide = {"model": "wideresnet", "model_options": {"normalize": None}}
    decay = {**_SGD, "weight_decay": 2e-4, "epochs": 76, "lr": 0.1, "schedule": "trades"}
    found.append(
        Preset("trades", "cifar10", "wideresnet", 0.031, {"beta": 6.0, "steps": 10, "rel_step": 0.007 / 0.031}, decay,
               {"depth": 34, "normalize": None}, "yaodongyu/TRADES@6e8e11b, arXiv 1901.08573", _ALL_IMAGES),
    )  # fmt: skip
    cifar("sat-r1", 8, {"lam": 0.2, "steps": 3}, _WIDE, VIVEK, _SAT_WIDE, **wide)
    cifar("sat-r2", 8, {"lam": 25.0, "rel_alpha": 0.25}, _WIDE, VIVEK, _SAT_WIDE, **wide)
    cifar(
        "sat-r3", 8, {"lam": 1.0, "tau": 0.6, "rel_eps_low": 0.25, "rel_alpha": 0.25}, _WIDE, VIVEK, _SAT_WIDE, **wide
    )
    rvs = {**_SGD, "batch_size": 64, "weight_decay": 0.0, "epochs": 286, "lr": 0.1, "schedule": "rvs"}
    cifar(
        "rvs", 8, {"kernel_decay": 2e-4}, rvs, "ALLab-Boun/robustness-via-synthesis@877ab92, arXiv 2108.09713", _RVS,
        model="wideresnet", model_options={"depth": 34, "activation": "leaky_relu", "normalize": "image"},
    )  # fmt: skip
    for defense, options, lr in (
        ("sat-r1", {"lam": 0.2, "steps": 10}, 0.01),
        ("sat-r2", {"lam": 5.0, "rel_alpha": 1 / 30}, 0.01),
        ("sat-r3", {"lam": 1.0, "tau": 0.4, "rel_eps_low": 1 / 3, "rel_alpha": 1 / 30}, 0.05),
    ):
        fit, without = {**_MNIST, "lr": lr}, {"normalize": None}
        found.append(Preset(defense, "mnist", "lenet+", 0.3, options, fit, without, VIVEK, _SAT_MNIST))
    return found


PRESETS: dict[str, Preset] = {preset.name: preset for preset in _published()}
"""Published recipes by name."""


def preset(name: str) -> Preset:
    """A published recipe.

    >>> preset("pgd/cifar10-preactresnet18-eps8").make().steps
    2

    Args:
        name: one of `PRESETS`: defense, data set, network and radius, such as "sat-r1/mnist-lenet+-eps0.3"; where two
            sources have one, the later ends in its own, such as "fast-at/cifar10-preactresnet18-eps8-zhang2022".

    Raises:
        ArgumentError: there is none of that name; the message lists those of the same defense.
    """
    wanted = str(name).partition("/")[0]
    near = [other for other in PRESETS if other.partition("/")[0] == wanted]
    if name not in PRESETS:
        one_of("preset", name, near or PRESETS)
    return PRESETS[name]
