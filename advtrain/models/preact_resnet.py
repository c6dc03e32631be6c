"""Pre-activation ResNet-18, the net of most fast-adversarial-training papers."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ..errors import at_least
from .base import Classifier, GlobalPool, activation_layer, square_enough


class PreActBlock(nn.Module):
    """BN - activation - conv3x3, twice, plus the shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution of the block's *input*, as in the code of Wong et al.; He
    et al. (2016) and most copies take the activated input there. The weights are the same, the function is not.
    """

    def __init__(self, channels: int, out: int, stride: int, activation: str):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = activation_layer(activation)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.act2 = activation_layer(activation)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.act1(self.bn1(x)))
        out = self.conv2(self.act2(self.bn2(out)))
        return out + self.shortcut(x)


class PreActResNet18(Classifier):
    """Pre-activation ResNet-18 with a final batch normalisation, as in "Fast is better than free".

    He et al. (2016, arXiv:1603.05027) in the variant of Wong et al. (2020, arXiv:2001.03994; code
    locuslab/fast_adversarial), which the code of FAST-BAT and N-FGSM took over: 11,172,170 parameters on three channels
    with 10 classes. GradAlign's code has the same net without the last batch normalisation.

    Weights start as in that code, which leaves PyTorch's default (Kaiming-uniform with a = sqrt(5)).

    Args:
        shape: (C, H, W) with H, W >= 8. The last of the four stages is 8 times smaller.
        num_classes: number of logits.
        width: channels of the first stage, doubled at each of the three next; 64 in the papers, 16 to try things out.
        activation: one of `ACTIVATIONS`.

    Raises:
        ArgumentError: an option is not accepted.
    """

    def __init__(self, shape, num_classes, *, width: int = 64, activation: str = "relu"):
        super().__init__(shape)
        at_least("width", width, 1)
        square_enough(shape, 8, "preactresnet18")
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(shape[0], width, 3, padding=1, bias=False))
        channels = width
        for stage in range(4):
            out = width * 2**stage
            first = PreActBlock(channels, out, 1 if stage == 0 else 2, activation)
            layers[f"stage{stage + 1}"] = nn.Sequential(first, PreActBlock(out, out, 1, activation))
            channels = out
        layers.update(bn=nn.BatchNorm2d(channels), act=activation_layer(activation), pool=GlobalPool())
        self.body = nn.Sequential(layers)
        self.head = nn.Linear(channels, num_classes)
