"""Pre-activation ResNets with 18, 34 and 50 layers, the nets of most fast-adversarial-training papers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import at_least
from .base import Classifier, GlobalPool, activation_layer, square_enough


class PreActBlock(nn.Module):
    """BN - activation - conv3x3, twice, plus the shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution of the block's *input*, as in the code of Wong et al.; He
    et al. (2016) and most copies take the activated input there. The weights are the same, the function is not.
    """

    expansion = 1

    def __init__(self, channels: int, inner: int, stride: int, activation: str):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = activation_layer(activation)
        self.conv1 = nn.Conv2d(channels, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.act2 = activation_layer(activation)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        same = stride == 1 and channels == inner
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, inner, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.act1(self.bn1(x)))
        out = self.conv2(self.act2(self.bn2(out)))
        result: Tensor = out + self.shortcut(x)
        return result


class PreActBottleneck(nn.Module):
    """BN - activation - conv, thrice: 1x1 to fewer channels, 3x3, and 1x1 to four times as many; plus the shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution of the *activated* input, as in He et al. (2016), and, in
    this block though not in the other, in the code of FAST-BAT.
    """

    expansion = 4

    def __init__(self, channels: int, inner: int, stride: int, activation: str):
        super().__init__()
        out = self.expansion * inner
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = activation_layer(activation)
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.act2 = activation_layer(activation)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.act3 = activation_layer(activation)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.shortcut = None if stride == 1 and channels == out else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.act1(self.bn1(x))
        out = self.conv2(self.act2(self.bn2(self.conv1(active))))
        out = self.conv3(self.act3(self.bn3(out)))
        result: Tensor = out + (x if self.shortcut is None else self.shortcut(active))
        return result


class PreActResNet(Classifier):
    """Four stages of blocks, the last three of which begin by halving the image, and a final batch normalisation.

    He et al. (2016, arXiv:1603.05027) in the variant of Wong et al. (2020, arXiv:2001.03994; code
    locuslab/fast_adversarial), which the code of FAST-BAT and N-FGSM took over. Weights start as in that code, which
    leaves PyTorch's default (Kaiming-uniform with a = sqrt(5)).
    """

    name = "preactresnet"
    block: type[PreActBlock] | type[PreActBottleneck] = PreActBlock
    blocks: Sequence[int] = (2, 2, 2, 2)

    def __init__(self, shape: tuple[int, int, int], num_classes: int, *, width: int = 64, activation: str = "relu"):
        super().__init__(shape)
        at_least("width", width, 1)
        square_enough(shape, 8, self.name)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(shape[0], width, 3, padding=1, bias=False))
        channels = width
        for stage, length in enumerate(self.blocks):
            inner, parts = width * 2**stage, []
            for number in range(length):
                parts.append(self.block(channels, inner, 2 if stage and number == 0 else 1, activation))
                channels = self.block.expansion * inner
            layers[f"stage{stage + 1}"] = nn.Sequential(*parts)
        layers.update(bn=nn.BatchNorm2d(channels), act=activation_layer(activation), pool=GlobalPool())
        self.body = nn.Sequential(layers)
        self.head = nn.Linear(channels, num_classes)


class PreActResNet18(PreActResNet):
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

    name = "preactresnet18"


class PreActResNet34(PreActResNet):
    """Pre-activation ResNet-34: the blocks of the ResNet-18 in stages of 3, 4, 6 and 3.

    As in the code of FAST-BAT (OPTML-Group/Fast-BAT): 21,280,330 parameters on three channels with 10 classes. Options
    and errors are those of `PreActResNet18`.
    """

    name, blocks = "preactresnet34", (3, 4, 6, 3)


class PreActResNet50(PreActResNet):
    """Pre-activation ResNet-50: bottleneck blocks in stages of 3, 4, 6 and 3.

    As in the code of FAST-BAT (OPTML-Group/Fast-BAT): 23,513,162 parameters on three channels with 10 classes. Options
    and errors are those of `PreActResNet18`; the blocks' outputs have four times `width` channels and more.
    """

    name, block, blocks = "preactresnet50", PreActBottleneck, (3, 4, 6, 3)
