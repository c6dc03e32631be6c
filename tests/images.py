"""Images for the tests of data, and how to compare what became of them."""

import numpy as np
import torch


def some_images(n=40, seed=0, classes=4, shape=(3, 8, 8), repeats=True):
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 256, (n, *shape)).astype(np.uint8)
    if repeats:
        x[1] = x[0]  # real sets have equal images, also with different labels
    return x, generator.integers(0, classes, n)


def same(a, b):
    return all(
        (p is None and q is None) or (torch.equal(p.x, q.x) and torch.equal(p.y, q.y))
        for p, q in ((a.train, b.train), (a.val, b.val), (a.test, b.test))
    )


def rows(*splits):
    """Images with labels as a sorted list: what is in the splits, whatever the order."""
    return sorted((image.numpy().tobytes(), int(label)) for s in splits for image, label in zip(s.x, s.y, strict=True))
