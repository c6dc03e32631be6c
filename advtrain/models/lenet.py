"""LeNet+, the MNIST net of the adversarial-training literature."""

from __future__ import annotations

from torch import nn

from .base import Classifier, activation_layer, square_enough


class LeNetPlus(Classifier):
    """LeNet+: two 5x5 convolutions with max-pooling and a wide linear layer; the literature's MNIST net.

    conv5x5(32) - pool - conv5x5(64) - pool - fc(1024) - fc(num_classes), 3,274,634 parameters on 1x28x28 with 10
    classes. It is the net of Madry et al. (2018, arXiv:1706.06083) on MNIST and, as "LeNet+", of Vivek and Babu (2020,
    arXiv:2002.00614). No batch normalisation and no dropout.

    Weights start as in the PyTorch code of Vivek and Babu, which leaves PyTorch's default (Kaiming-uniform with
    a = sqrt(5)); Madry's TensorFlow code has truncated normals of 0.1 and biases of 0.1.

    Args:
        shape: (C, H, W) with H, W >= 4.
        num_classes: number of logits.
        activation: one of `ACTIVATIONS`.

    Raises:
        ArgumentError: an option is not accepted.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, *, activation: str = "relu"):
        super().__init__(shape)
        square_enough(shape, 4, "lenet+")
        channels, height, width = shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            activation_layer(activation),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            activation_layer(activation),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), 1024),
            activation_layer(activation),
        )
        self.head = nn.Linear(1024, num_classes)
