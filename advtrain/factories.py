"""From the name of a factory to the network that it makes: `"package.module:factory"` or `"file.py:factory"`."""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import AdvtrainError, ArgumentError, FileError, ModelError, bad, kind_of
from .models import MODELS

FORMS = "'package.module:factory' or 'file.py:factory'"


def make(model: Any, options: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The network that a factory makes.

    Args:
        model: `"package.module:factory"`, `"file.py:factory"`, a factory, or a network that is made already.
        options: arguments for the factory, by name.

    Returns:
        The network; and what is known of the code that made it: `version` of the package, or `code`, the SHA-256 of the
        file.

    Raises:
        FileError: there is no such file.
        ArgumentError: there is no such module or factory, or it takes other options.
        ModelError: the factory fails, or returns no network.
    """
    known = isinstance(model, (str, nn.Module)) or callable(model)
    name, code, folder = f"model={(title(model) if known else kind_of(model))!r}", {}, None
    if isinstance(model, str):
        place, _, attribute = model.rpartition(":")
        if model.endswith(".py"):
            bad("model", without_folder(model), FORMS, _made_in(model))
        if not place or not attribute:
            near = difflib.get_close_matches(model, MODELS, n=1, cutoff=0.5)
            bad("model", model, f"{FORMS}, or one of {', '.join(MODELS)}", f"did you mean {near[0]!r}?" if near else "")
        folder = Path(place).parent if place.endswith(".py") else None
    with _importable(folder), _settings_kept():
        if isinstance(model, str):
            module = _import(place)
            code = _code(module, place)
            model = _attribute(module, attribute, name, place)
        if isinstance(model, nn.Module):
            if options:
                bad("options", sorted(options), "used by a network that is made already", "name its factory instead")
            return model, code
        if not callable(model):
            raise ArgumentError(
                f"{name} is neither a factory nor a network but of type {type(model).__name__}: write {FORMS}"
            )
        try:
            inspect.signature(model).bind(**options)
        except TypeError as error:
            hint = "options={'num_classes': 10} (--model-option num_classes=10) gives arguments"
            raise ArgumentError(f"{name} cannot be called with options={options}: {error}; {hint}") from error
        except ValueError:
            pass  # written in C: it says nothing of its arguments
        try:
            network = model(**options)
        except AdvtrainError:
            raise
        except Exception as error:
            raise ModelError(f"{name} fails with options={options}: {type(error).__name__}: {_first(error)}") from error
    if not isinstance(network, nn.Module):
        hint = "return the network alone" if isinstance(network, (tuple, list, dict)) else "name what makes the network"
        hint = "its forward was called: name the class, not the network" if isinstance(network, Tensor) else hint
        raise ModelError(f"{name} makes a {type(network).__name__}, not an nn.Module: {hint}")
    return network, code


def _import(place: str) -> Any:
    """The module of that name, or of that file."""
    importlib.invalidate_caches()
    path = Path(os.path.expanduser(place))
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        if not path.is_file():
            raise FileError(f"model: {place} does not exist, or is no file")
        spec = importlib.util.spec_from_file_location(f"advtrain_model_{path.stem}", path)
        assert spec is not None and spec.loader is not None  # nosec B101 # of a name that ends in .py
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look themselves up there
        spec.loader.exec_module(module)
        return module
    except FileError:
        raise
    except Exception as error:
        # The module that is missing may be one that this one imports: then the name in the error says so.
        missing = isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}.")
        hint = (
            f": is it installed, or in the current folder? A file is named {FORMS.split(' or ')[1]}" if missing else ""
        )
        raise ArgumentError(
            f"model: {place} cannot be imported: {type(error).__name__}: {_first(error)}{hint}"
        ) from error


@contextlib.contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    """The modules beside a file can be imported by it, as when Python runs it."""
    entry = str(folder.absolute()) if folder is not None else ""
    if folder is not None:
        sys.path.insert(0, entry)
    try:
        yield
    finally:
        if folder is not None:
            with contextlib.suppress(ValueError):
                sys.path.remove(entry)


@contextlib.contextmanager
def _settings_kept() -> Iterator[None]:
    """What a factory sets for the whole process, PyTorch's default type and whether gradients are taken, ends here."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)


def _made_in(file: str) -> str:
    """What a file defines that may make a network, as a hint; the file is read and not executed."""
    try:
        found = ast.parse(Path(file).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        found = []
    names = [node.name for node in found if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name[0] != "_"]
    write = f"write {without_folder(file) + ':' + (names[0] if names else 'factory')!r}"
    return f"it defines {', '.join(names)}: {write}" if names else write


def _attribute(module: Any, attribute: str, name: str, place: str) -> Any:
    """What the module at a place has under a name, which may have dots in it."""
    thing = module
    for part in attribute.split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError as error:
            near = difflib.get_close_matches(part, [key for key in dir(thing) if key[0] != "_"], n=1, cutoff=0.5)
            hint = f": did you mean {near[0]!r}?" if near else ""
            where = without_folder(place) if thing is module else getattr(thing, "__name__", thing)
            raise ArgumentError(f"{name}: there is no {part!r} in {where}{hint}") from error
    return thing


def _code(module: Any, place: str) -> dict[str, Any]:
    if place.endswith(".py"):
        return {"code": hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()}
    package = place.partition(".")[0]
    try:
        return {"version": f"{package} {metadata.version(package)}"}
    except metadata.PackageNotFoundError:
        return {}


def title(model: Any) -> str:
    """What to call a network in a message and in a report: as it was named, or as its class or factory is."""
    if isinstance(model, str):
        return without_folder(model)
    kind = type(model) if isinstance(model, nn.Module) else model
    return ":".join(filter(None, (getattr(kind, "__module__", ""), getattr(kind, "__qualname__", type(kind).__name__))))


def without_folder(text: str) -> str:
    """A word of a command line, or the file name alone if it is an absolute path: folders are of one machine."""
    return Path(text).name if Path(text).is_absolute() else text


def _first(error: BaseException) -> str:
    """The first line of a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
