"""A device that is called mps and has no float64, on any machine: tensors of the processor that pretend.

It shows which of the package's computations would ask Apple's GPUs for numbers that they do not have, and where tensors
of two devices would meet. It does not show what PyTorch itself lacks there.
"""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from advtrain.rng import Rng

MPS, CPU = torch.device("mps"), torch.device("cpu")
MIX = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
"""What takes tensors of two devices."""
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten._index_put_impl_.default}
"""What takes indices of the processor for a tensor of the device, and not the other way round."""


class OnMPS(torch.Tensor):
    """A tensor whose device is mps. What is computed with it is computed on the processor."""

    device = MPS
    is_cpu = False
    is_mps = True

    @staticmethod
    def __new__(cls, inner):
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"{self.inner!r} on mps"

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.cpu:
            return Left.apply(args[0])
        if function is torch.Tensor.to:
            return moved(*args, **kwargs)
        if function is torch.Tensor.tolist:
            return args[0].inner.tolist()
        if function in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return super().__torch_function__(function, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class Left(torch.autograd.Function):
    """From the device to the processor; gradients go the other way."""

    @staticmethod
    def forward(ctx, x):
        return x.inner.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient if isinstance(gradient, OnMPS) else OnMPS(gradient)


class Entered(torch.autograd.Function):
    """From the processor to the device."""

    @staticmethod
    def forward(ctx, x):
        return OnMPS(x.detach().clone())

    @staticmethod
    def backward(ctx, gradient):
        return gradient.inner


def moved(x, *args, **kwargs):
    """What `Tensor.to` does where one of the devices is the pretended one."""
    said = [*args, kwargs.pop("device", None), kwargs.pop("dtype", None)]
    others = [value for value in said if isinstance(value, torch.Tensor)]
    devices = [torch.device(v) for v in said if isinstance(v, (str, torch.device))] + [v.device for v in others]
    dtypes = [v for v in said if isinstance(v, torch.dtype)] + [v.dtype for v in others]
    target, dtype = (devices or [x.device])[0], (dtypes or [x.dtype])[0]
    if isinstance(x, OnMPS) and target == CPU:
        x = Left.apply(x)
    with torch._C.DisableTorchFunctionSubclass():
        x = x.to(dtype=dtype, **kwargs)
    return Entered.apply(x) if target.type == "mps" and not isinstance(x, OnMPS) else x


def compute(function, args, kwargs):
    """Run one operation on the processor, as if where its tensors say that they are."""
    tensors = []
    tree_map_only(torch.Tensor, tensors.append, (args, kwargs))
    here = any(isinstance(t, OnMPS) for t in tensors)
    wanted = kwargs.get("device")
    to_mps = wanted is not None and torch.device(wanted).type == "mps"
    to_mps |= Literals.backward and not tensors
    to_cpu = wanted is not None and torch.device(wanted).type == "cpu" and here and not Literals.backward
    strangers = [t for t in tensors if not isinstance(t, OnMPS) and t.dim() > 0]
    mixes = function in MIX or (function in INDEXING and isinstance(args[0], OnMPS))
    if here and strangers and not Literals.backward and not mixes:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two: mps and cpu ({function})"
        )
    if to_mps:
        kwargs = {**kwargs, "device": CPU}
    inner_args, inner_kwargs = tree_map_only(OnMPS, lambda t: t.inner, (args, kwargs))
    result = function(*inner_args, **inner_kwargs)
    if (here and not to_cpu) or to_mps:
        known = {id(t.inner): t for t in tensors if isinstance(t, OnMPS)}
        return tree_map_only(torch.Tensor, lambda t: known.get(id(t)) if id(t) in known else OnMPS(t), result)
    return result


class Factories(TorchDispatchMode):
    """Makes new tensors on the device, and takes tensors there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class Literals(TorchFunctionMode):
    """Makes tensors of numbers on the device."""

    backward = False  # there PyTorch makes tensors by itself, where it believes these to be: on the processor

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        wanted = kwargs.get("device")
        if function in (torch.Tensor.backward, torch.autograd.grad, torch.autograd.backward) and not Literals.backward:
            Literals.backward = True
            try:
                return function(*args, **kwargs)
            finally:
                Literals.backward = False
        if function in (torch.tensor, torch.as_tensor) and wanted is not None and torch.device(wanted).type == "mps":
            return OnMPS(function(*args, **{name: value for name, value in kwargs.items() if name != "device"}))
        return moved(*args, **kwargs) if function is torch.Tensor.to else function(*args, **kwargs)


@contextlib.contextmanager
def pretended():
    """Within, `device="mps"` can be asked for."""
    changed = pytest.MonkeyPatch()
    plain = Rng.generator
    changed.setattr(Rng, "generator", lambda self, device="cpu": plain(self, "cpu"))
    changed.setattr(torch.mps, "synchronize", lambda: None)
    changed.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: True)  # autocast asks, before 2.7
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter becomes another, not only its data
    try:
        with Literals(), Factories():
            yield
    finally:
        changed.undo()
        torch.__future__.set_overwrite_module_params_on_conversion(False)
