"""How near two tensors are that should be the same: one measure for every identity that the tests claim."""

import torch


def close(ours, theirs, tol=1e-9):
    """Whether max|ours - theirs| <= tol · max|theirs|, for two tensors of one shape or two sequences of such.

    `torch.allclose` would not do: its relative tolerance of 1e-5 stays when only `atol` is given, and then the absolute
    one decides for small entries. Where `theirs` is zero throughout, `ours` must be.
    """
    if not isinstance(theirs, torch.Tensor):
        return all(close(a, b, tol) for a, b in zip(ours, theirs, strict=True))
    ours, theirs = ours.detach().double(), theirs.detach().double()
    assert ours.shape == theirs.shape, f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)}"
    return bool((ours - theirs).abs().max() <= tol * theirs.abs().max())
