"""Wide residual nets of any depth and width, the large models of the robustness literature."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from ..errors import at_least, bad
from .base import Classifier, GlobalPool, activation_layer, square_enough

DEEPEST = 10_000
"""Layers: from here on a depth is taken for a mistake."""


class WideBlock(nn.Module):
    """BN - activation - conv3x3 - BN - activation - dropout - conv3x3, plus the shortcut.

    Where the number of channels changes, the shortcut is a 1x1 convolution of the *activated* input.
    """

    def __init__(self, channels: int, out: int, stride: int, dropout: float, activation: str):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = activation_layer(activation)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.act2 = activation_layer(activation)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        # As in the reference, only a change of channels projects: a strided block always has one.
        self.shortcut = None if channels == out else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.act1(self.bn1(x))
        out = self.act2(self.bn2(self.conv1(active)))
        out = self.conv2(self.dropout(out))
        result: Tensor = out + (x if self.shortcut is None else self.shortcut(active))
        return result


class WideResNet(Classifier):
    """Wide residual net WRN-depth-width of Zagoruyko and Komodakis, WRN-28-10 by default.

    Zagoruyko and Komodakis (2016, arXiv:1605.07146), as in xternalz/WideResNet-pytorch and in the code of TRADES
    (yaodongyu/TRADES), whose dropout place is taken: 36,479,194 parameters for WRN-28-10 and 46,160,474 for WRN-34-10
    on three channels with 10 classes. The TRADES code also holds a `sub_block1` that its forward pass never uses (it
    inflates that code's count); it is left out. The code of FAST-BAT (OPTML-Group/Fast-BAT) has one block more per
    stage than the name says: its "WRN-16-8" is `depth=22, width=8` here.

    Convolutions start normal with variance 2 / (k² · out channels), the last linear layer with PyTorch's default
    weights and zero bias, as in both.

    Args:
        shape: (C, H, W) with H, W >= 4.
        num_classes: number of logits.
        depth: 6n + 4, in 10..10,000.
        width: the widening factor k, at least 1.
        dropout: probability in [0, 1) between a block's two convolutions.
        activation: one of `ACTIVATIONS`.

    Raises:
        ArgumentError: an option is not accepted.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        depth: int = 28,
        width: int = 10,
        dropout: float = 0.0,
        activation: str = "relu",
    ):
        super().__init__(shape)
        square_enough(shape, 4, "wideresnet")
        at_least("width", width, 1)
        if isinstance(depth, bool) or not isinstance(depth, int) or not 10 <= depth <= DEEPEST or (depth - 4) % 6:
            bad("depth", depth, f"6n + 4 in 10..{DEEPEST:,}", "the papers use 16, 28, 34, 40 and 70")
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            bad("dropout", dropout, "in [0, 1)")
        channels = 16
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(shape[0], channels, 3, padding=1, bias=False))
        for stage in range(3):
            blocks = []
            out = 16 * width * 2**stage
            for number in range((depth - 4) // 6):
                stride = 2 if stage and number == 0 else 1
                blocks.append(WideBlock(channels, out, stride, dropout, activation))
                channels = out
            layers[f"stage{stage + 1}"] = nn.Sequential(*blocks)
        layers.update(bn=nn.BatchNorm2d(channels), act=activation_layer(activation), pool=GlobalPool())
        self.body = nn.Sequential(layers)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                k = module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, 0, math.sqrt(2 / (k * module.out_channels)))
        nn.init.zeros_(self.head.bias)
