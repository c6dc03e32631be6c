"""The net for quick experiments: it trains adversarially on the embedded digits in seconds, on a laptop's CPU."""

from __future__ import annotations

from torch import nn

from ..errors import at_least, check_flag
from .base import Classifier, activation_layer, square_enough


class SmallCNN(Classifier):
    """Three 3x3 convolutions and two linear layers, for 8x8 digits and whatever else should be quick.

    conv(width) - conv(2 width, stride 2) - conv(2 width) - mean over blocks to about 4x4 - fc(128) - fc(num_classes);
    81,002 parameters on 1x8x8 with 10 classes.

    No batch normalisation unless asked for: its mode during an attack is one question less for a first experiment. GELU
    rather than ReLU, because without normalisation PGD training at ε = 0.3 leaves some seeds of the ReLU net with dead
    units and one answer for every image; smooth activations are also what Xie et al. (2020, arXiv 2006.14536) recommend
    for adversarial training. Strides in place of max-pooling keep the whole net smooth, so that second-order terms have
    a closed form to test against.

    Hidden weights start Kaiming-normal with zero biases, as in the small CNN of TRADES (yaodongyu/TRADES), where
    PyTorch's default starts so small that without normalisation the first ten epochs on the digits are lost. The last
    layer keeps PyTorch's default; TRADES has zeros there, under which input gradients, and every first attack, are
    zero.

    Args:
        shape: (C, H, W) with H, W >= 8.
        num_classes: number of logits.
        width: channels of the first convolution, at least 1.
        batch_norm: normalise after each convolution.
        activation: one of `ACTIVATIONS`.

    Raises:
        ArgumentError: an option is not accepted.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: int = 16,
        batch_norm: bool = False,
        activation: str = "gelu",
    ):
        super().__init__(shape)
        check_flag("batch_norm", batch_norm)
        at_least("width", width, 1)
        square_enough(shape, 8, "small-cnn")
        channels, height, side = shape
        layers: list[nn.Module] = []
        for out, stride in (width, 1), (2 * width, 2), (2 * width, 1):
            layers += [nn.Conv2d(channels, out, 3, stride, padding=1, bias=not batch_norm)]
            layers += [nn.BatchNorm2d(out)] if batch_norm else []
            layers += [activation_layer(activation)]
            channels = out
        # Blocks of a fixed size, not adaptive pooling, whose backward pass is not deterministic on CUDA.
        height, side = (height + 1) // 2, (side + 1) // 2
        pool = (height // 4, side // 4)
        cells = (height // pool[0]) * (side // pool[1])
        layers += [nn.AvgPool2d(pool)] if pool != (1, 1) else []
        layers += [nn.Flatten(), nn.Linear(cells * channels, 128), activation_layer(activation)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(128, num_classes)
        for layer in self.body:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
