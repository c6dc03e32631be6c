"""How the fixtures of Robustness-via-Synthesis are replayed: their layouts, their feature extractor, our loss.

Theirs are images of 0..255 with channels last; ours are in [0, 1] with channels first. Everything else, sizes included,
is read from the file.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advtrain as at
from advtrain.features import logits_and_features
from advtrain.player import Player
from advtrain.rng import Recorded
from advtrain.synthesis import Generator, perturb, smooth_labels
from advtrain.transport import sinkhorn_plan

PREFIX = "attack_module/"
GENERATOR = {
    "attack/DW": "dense.weight", "attack/attackbiases": "dense.bias",
    "init_deconv/DW": "body.0.weight", "BatchNorm/gamma": "body.1.weight", "BatchNorm/beta": "body.1.bias",
    "deconv2/DW": "body.3.weight", "BatchNorm_1/gamma": "body.4.weight", "BatchNorm_1/beta": "body.4.bias",
    "deconv3/DW": "body.7.weight",
}  # fmt: skip
CLASSIFIER = {
    "init_conv/DW": "first", "tail/BatchNorm/gamma": "gamma", "tail/BatchNorm/beta": "beta", "tail/conv2/DW": "second",
    "pre_softmax/DW": "head.weight", "pre_softmax/pre_softmaxbiases": "head.bias",
}  # fmt: skip


class Extractor(nn.Module):
    """The fixtures' classifier: standardisation, two convolutions with TensorFlow's SAME padding, mean, dense layer."""

    def __init__(self, weights: dict[str, Tensor], strides: tuple[int, int]):
        super().__init__()
        self.strides = strides
        for name in ("first", "gamma", "beta", "second"):
            self.register_parameter(name, nn.Parameter(weights[name]) if name in weights else None)
        self.head = nn.Linear(weights["head.weight"].shape[1], len(weights["head.weight"])).to(weights["first"])
        self.load_state_dict(weights)

    def forward(self, x: Tensor) -> Tensor:
        x = 255 * x
        mean, deviation = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / deviation.clamp(min=x[0].numel() ** -0.5)
        x = self.same(x, self.first, self.strides[0])
        if self.gamma is not None:
            x = F.batch_norm(x, None, None, self.gamma, self.beta, training=True, eps=1e-3)
        x = self.same(F.leaky_relu(x, 0.1), self.second, self.strides[1])
        return self.head(F.leaky_relu(x, 0.1).mean((2, 3)))

    @staticmethod
    def same(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
        pads = []
        for size, window in zip(x.shape[:1:-1], kernel.shape[:1:-1], strict=True):
            missing = max((-(-size // stride) - 1) * stride + window - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, pads), kernel, stride=stride)


def first(images: Tensor) -> Tensor:
    """Channels last to channels first."""
    return images.permute(0, 3, 1, 2).contiguous()


def to_ours(name: str, value: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """A parameter of theirs in our layout; `grid` is (C, H, W) of what the generator's dense layer gives."""
    channels, height, side = grid
    if value.ndim == 4:  # both kinds of convolution: [kh, kw, in, out] and, transposed, [kh, kw, out, in]
        return value.permute(3, 2, 0, 1)
    if name.startswith("attack/"):
        value = value.reshape(-1, height, side, channels).permute(3, 1, 2, 0).flatten(0, 2)
        return value[:, 0] if name.endswith("biases") else value
    return value.T if value.ndim == 2 else value


def to_theirs(name: str, value: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """A gradient of ours in their layout."""
    if value.ndim == 4:
        return value.permute(2, 3, 1, 0)
    if name.startswith("attack/"):
        value = value.reshape(*grid, -1).permute(3, 1, 2, 0).flatten(1)
        return value[0] if name.endswith("biases") else value
    return value.T if value.ndim == 2 else value


def weights(z: Any) -> dict[str, Tensor]:
    """All recorded parameters by their names; a product of two small factors is multiplied out."""
    found = z.under("param.")
    for key in [key for key in found if key.endswith(".lowrank_A")]:
        name = key.removesuffix(".lowrank_A")
        a, b, scale = (found.pop(f"{name}.{part}") for part in ("lowrank_A", "lowrank_B", "scale"))
        found[name] = a.to(z.dtype) @ b.to(z.dtype) * scale
    return found


class Game:
    """Both players of a file, with our defense and the file's draws."""

    def __init__(self, z: Any):
        theirs = weights(z)
        self.x, self.y = first(z["x"]).to(z.dtype) / 255, z["y"]
        shape, width = tuple(self.x.shape[1:]), theirs[PREFIX + "deconv2/DW"].shape[2]
        generator = Generator(shape, z["rng.z_normal"].shape[1], width=width, scale=1 / 255).to(z.dtype)
        self.grid = generator.grid
        ours = {ours: to_ours(name, theirs[PREFIX + name], self.grid) for name, ours in GENERATOR.items()}
        generator.load_state_dict(ours, strict=False)
        ours = {ours: to_ours(name, theirs[name], self.grid) for name, ours in CLASSIFIER.items() if name in theirs}
        lines = "\n".join(z.meta["feature_extractor"])
        strides = re.findall(r"conv \d+->\d+, stride (\d)", lines)
        self.model = Extractor(ours, tuple(map(int, strides))).train()
        self.names = {name: ours for name, ours in CLASSIFIER.items() if name in theirs}
        self.defense = at.defenses.RvS(
            at.Threat("linf", z.hp("epsilon") / 255),
            smoothing=z.hp("label_smoothing"),
            sinkhorn_eps=z.hp("sinkhorn_eps"),
            sinkhorn_iterations=z.hp("sinkhorn_niter"),
            clip=z.hp("delta_clip") / 255,
            kernel_decay=z.hp("weight_decay"),
        )
        self.defense.player = Player(generator, lr=0.01, momentum=0.9)
        self.draws = Recorded({"noise": z["rng.z_normal"], "init": first(z["rng.pixel_uniform"]) / 255})
        moves = Recorded({"generator": self.draws.draws, "classifier": self.draws.draws})
        self.batch = at.Batch(self.x, self.y, draws=moves)

    def gradients(self, value: Tensor) -> dict[str, Tensor]:
        """Of the classifier, in their names and layout."""
        parameters = dict(self.model.named_parameters())
        wanted = [parameters[name] for name in self.names.values()]
        found = torch.autograd.grad(value, wanted, retain_graph=True, materialize_grads=True)
        return {name: to_theirs(name, value, self.grid) for name, value in zip(self.names, found, strict=True)}


def kernels(module: nn.Module) -> Tensor:
    return sum(parameter.square().sum() / 2 for parameter in module.parameters() if parameter.ndim >= 2)


def step(z: Any) -> dict[str, Tensor]:
    game = Game(z)
    defense, model, x, y = game.defense, game.model, game.x, game.y
    move = defense(model, game.batch, 0.0)
    ours = {f"grad_classifier.{name}": value for name, value in game.gradients(move.loss).items()}
    with torch.no_grad():
        made = perturb(defense.generator, x, defense.threat, game.draws, defense.clip)
    assert torch.equal(made.x_adv - x, move.delta)
    ot, _ = defense.transport(model, x, made.x_adv)
    ours |= {f"grad_classifier_ot_only.{name}": value for name, value in game.gradients(ot).items()}
    (ours["logits.nat"], ours["mid.feat_nat"]) = logits_and_features(model, x)
    ours["mid.feat_adv"] = logits_and_features(model, made.x_adv)[1]
    for name, images in (("delta", 255 * made.delta), ("x_adv", 255 * made.x_adv)):
        ours[f"mid.{name}"], ours[f"mid.{name}_row_sum"] = images.permute(0, 2, 3, 1), images.sum((2, 3))
    ours |= {"loss.mean_xent": defense.criterion(move.logits, y), "loss.ot": move.logs["ot"]}
    ours["loss.xent"] = F.cross_entropy(ours["logits.nat"], y, reduction="sum")
    ours["loss.xent_adv"] = F.cross_entropy(move.logits, y, reduction="sum")
    ours["loss.wd"] = kernels(model) + kernels(defense.generator)  # their value, not their gradient, has both in it
    ours["loss.total"] = move.loss + defense.kernel_decay * kernels(defense.generator)
    return as_stored(z, ours)


def generator_gradients(z: Any) -> dict[str, Tensor]:
    game = Game(type(z)(z.path.parent / z.meta["companion"], z.dtype))
    game.defense.adversary_step(game.model, game.batch, 0.0)
    state, ours = game.defense.state_dict(), {}
    for name, mine in GENERATOR.items():  # after one step, the momentum is the gradient
        gradient = to_theirs(name, state[f"momentum.{mine}"], game.grid)
        key = f"grad_generator.{PREFIX}{name}"
        ours[key] = gradient
        if gradient.ndim == 2:
            ours[f"{key}.sum_over_out"], ours[f"{key}.sum_over_in"] = gradient.sum(1), gradient.sum(0)
            ours[f"{key}.frobenius"] = gradient.norm()
        for block in [other for other in z.arrays if other.startswith(f"{key}.block_")]:
            top, bottom, left, right = map(int, block.rpartition("block_")[2].split("_"))
            ours[block] = gradient[top:bottom, left:right]
    return as_stored(z, ours)


def sinkhorn_loss(z: Any) -> dict[str, Tensor]:
    x, y = z["feat_x"].requires_grad_(), z["feat_y"].requires_grad_()
    assert z.hp("p") == 2
    value, plan, cost = sinkhorn_plan(x, y, eps=z.hp("eps"), iterations=z.hp("niter"))
    grad_x, grad_y = torch.autograd.grad(value, (x, y))
    return {"out.cost_matrix": cost, "out.plan": plan, "out.loss": value, "out.grad_x": grad_x, "out.grad_y": grad_y}


def label_smoothing(z: Any) -> dict[str, Tensor]:
    classes, delta = z.hp("num_classes"), z.hp("delta")
    target, first_class = (smooth_labels(y, classes, delta, z.dtype) for y in (z["y"], torch.tensor([0])))
    return {"out.target": target, "out.target_vector_class0": first_class[0]}


def as_stored(z: Any, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where theirs was rounded to float32 for storage, ours comes nearer by at most the half unit lost in that."""
    for key, value in ours.items():
        if key in z.arrays and z.arrays[key].dtype == "float32" and z.dtype == torch.float64:
            theirs = torch.from_numpy(z.arrays[key])
            unit = torch.nextafter(theirs.abs(), torch.tensor(float("inf"))).double() - theirs.abs().double()
            off = value.detach() - theirs.double()
            ours[key] = theirs.double() + off.sign() * (off.abs() - unit / 2).clamp(min=0)
    return ours
