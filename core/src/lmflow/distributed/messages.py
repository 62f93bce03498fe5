"""What processes send one another: values of plain types, arrays, tensors, and data classes; nothing that runs code.

A pickle may name any function to call, so whoever reaches the port of a run could run one. Here it names types of an
allow-list alone, and tensors are their bytes.
"""

from __future__ import annotations

import enum
import importlib
import io
import pickle
import sys
from dataclasses import is_dataclass
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType
from typing import Any

PLAIN = {
    "array": ("array", "_array_reconstructor"),
    "builtins": ("bytearray", "complex", "frozenset", "range", "set", "slice"),
    "collections": ("Counter", "OrderedDict", "defaultdict", "deque"),
    "datetime": ("date", "datetime", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "pathlib": ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "uuid": ("UUID",),
}
"""Types of plain values, and what makes arrays of their bytes."""


def pack(value: Any) -> bytes:
    """The value as bytes. Raises TypeError where it holds what the others would not take."""
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    except (pickle.PicklingError, AttributeError) as error:
        raise TypeError(f"what one process sends another has to be values, not {error}") from error
    return buffer.getvalue()


def unpack(content: bytes) -> Any:
    """The value that `pack` was given. Raises TypeError where the bytes name anything else than a type of values."""
    return _Unpickler(io.BytesIO(content)).load()


@lru_cache(maxsize=4096)
def is_sent(kind: Any) -> bool:
    """Whether values of this type are sent: plain ones, enumerations, data classes, options, and lmflow's own."""
    if not isinstance(kind, type):
        return False
    if kind.__qualname__ in PLAIN.get(kind.__module__, ()):
        return True
    return (
        is_dataclass(kind)
        or issubclass(kind, enum.Enum)
        or hasattr(kind, "model_fields")
        or hasattr(kind, "_fields")
        or kind.__module__.partition(".")[0] == "lmflow"
    )


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Tensors as bytes; types by name, if the others take them; of other values those of such types."""
        kind: Any = type(obj)
        if _is_tensor(kind):
            return _tensor, _taken_apart(obj)
        if isinstance(obj, FunctionType | BuiltinFunctionType):
            is_value = obj is _tensor or obj.__qualname__ in PLAIN.get(obj.__module__, ())
        else:
            kind = obj if isinstance(obj, type) else kind
            is_value = is_sent(kind) or _is_of_numpy(kind)
        if not is_value:
            found = getattr(obj, "__qualname__", type(obj).__qualname__)
            raise TypeError(f"what one process sends another has to be values; found {found}")
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The type of that name, or what makes an array or a tensor; raises TypeError for all else."""
        if (module, name) == (_tensor.__module__, _tensor.__qualname__):
            return _tensor
        if name in PLAIN.get(module, ()):
            return getattr(importlib.import_module(module), name)
        found = super().find_class(module, name) if module.partition(".")[0] in sys.modules else None
        if not is_sent(found):
            raise TypeError(f"another process sent {module}.{name}, which is no type of values")
        return found


@lru_cache(maxsize=4096)
def _is_tensor(kind: Any) -> bool:
    return bool(kind.__module__.partition(".")[0] == "torch" and hasattr(kind, "detach"))


@lru_cache(maxsize=4096)
def _is_of_numpy(kind: Any) -> bool:
    return bool(kind.__module__.partition(".")[0] == "numpy")


def _taken_apart(tensor: Any) -> tuple[bytes, str, tuple[int, ...]]:
    import torch

    values = tensor.detach().to("cpu").contiguous()
    return (
        values.view(-1).view(torch.uint8).numpy().tobytes(),
        str(values.dtype).removeprefix("torch."),
        tuple(values.shape),
    )


def _tensor(content: bytes, dtype: str, shape: tuple[int, ...]) -> Any:
    import torch

    kind = getattr(torch, dtype)
    if not isinstance(kind, torch.dtype):
        raise TypeError(f"another process sent a tensor of {dtype}")
    if not content:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(kind).reshape(shape)
