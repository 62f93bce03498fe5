"""What torch says of itself and of this machine; a process of its own, asked by `lmflow.doctor.torch_checks`.

Standard input holds `{"libraries": [path], "modules": [name]}`, what to load and what to import beside torch.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import TYPE_CHECKING, Any

from lmflow.doctor.probes import say

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}
"""Largest difference from exact attention that rounding explains: on values of about 1, with head size 64."""


def main() -> None:
    """Answer topic by topic, what may crash last."""
    warnings.simplefilter("ignore")
    question = json.load(sys.stdin)
    import torch

    said_why = ""
    if torch.version.cuda and not torch.cuda.is_available():
        said_why = why_no_cuda()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    say(
        "torch",
        {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "rocm": torch.version.hip,
            "architectures": torch.cuda.get_arch_list() if count else [],
            "reason": said_why,
        },
    )
    say("devices", [describe_device(number) for number in range(count)])
    say("attention", compare_attention("cuda" if count else "cpu"))
    for path in question["libraries"]:
        say(f"library {path}", load_error(path))
    for name in question["modules"]:
        say(f"import {name}", import_error(name))


def why_no_cuda() -> str:
    """What torch says when its first GPU is asked for, in a line."""
    import torch

    try:
        torch.zeros(1, device="cuda")
    except Exception as error:
        return str(error).strip().partition("\n")[0]
    return ""


def describe_device(number: int) -> dict[str, Any]:
    """A GPU, and the error of a small computation on it ("" if it is right)."""
    import torch

    properties = torch.cuda.get_device_properties(number)
    with torch.cuda.device(number):
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        ones = torch.ones(64, 64, device=f"cuda:{number}")
        wrong = "" if bool((ones @ ones == 64).all()) else "a product of matrices came out wrong"
    except Exception as error:
        wrong = str(error).strip().partition("\n")[0]
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": [properties.major, properties.minor],
        "bfloat16": bfloat16,
        "error": wrong,
    }


def compare_attention(device: str) -> dict[str, dict[str, Any]]:
    """A small causal attention by every back end: its largest difference from exact attention, or why there is none."""
    import torch

    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 32, 64, dtype=torch.float64)
    expected = exact_attention(query, key, value)
    low = "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    found: dict[str, dict[str, Any]] = {}
    for name, attention, dtypes in backends(device, low):
        result: dict[str, Any] = {"error": "no data type"}
        for dtype in dtypes:
            inputs = [each.to(device, getattr(torch, dtype)) for each in (query, key, value)]
            try:
                difference = float((attention(*inputs).cpu().double() - expected).abs().max())
                result = {"difference": difference, "tolerance": TOLERANCE[dtype], "dtype": dtype}
                break
            except Exception as error:
                result = {"error": str(error).strip().partition("\n")[0]}
        found[name] = result
    return found


def exact_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(QKᵀ/√d + causal mask)V for (B, heads, T, d), step by step."""
    import torch

    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    attended: Tensor = scores.masked_fill(future, float("-inf")).softmax(-1) @ value
    return attended


def backends(device: str, low: str) -> list[tuple[str, Any, list[str]]]:
    """Name, function of (query, key, value), and data types to try, of each back end that could be here.

    `low` is the 16-bit type of the device.
    """
    from importlib.util import find_spec

    from torch.nn.attention import SDPBackend

    found: list[tuple[str, Any, list[str]]] = [("eager", exact_attention, ["float32"])]
    kernels = [("math", SDPBackend.MATH), ("flash", SDPBackend.FLASH_ATTENTION)]
    if device == "cuda":
        kernels += [("efficient", SDPBackend.EFFICIENT_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)]
    found += [(f"sdpa {name}", sdpa(kernel), ["float32", low]) for name, kernel in kernels]
    if device == "cuda" and find_spec("flash_attn"):
        found.append(("flash_attention_2", flash_attention_2, [low]))
    return found


def sdpa(kernel: Any) -> Any:
    """torch's attention, by one of its kernels alone."""

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        from torch.nn.attention import sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        with sdpa_kernel(kernel):
            return scaled_dot_product_attention(query, key, value, is_causal=True)

    return attention


def flash_attention_2(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The attention of the package flash-attn, which has tokens before heads."""
    from flash_attn import flash_attn_func  # type: ignore[import-not-found]

    result: Tensor = flash_attn_func(*(each.transpose(1, 2) for each in (query, key, value)), causal=True)
    return result.transpose(1, 2)


def load_error(path: str) -> str:
    """Why a compiled library does not load beside this torch, "" if it does."""
    import ctypes

    try:
        ctypes.CDLL(path)
    except OSError as error:
        return str(error).replace(f"{path}: ", "")
    return ""


def import_error(name: str) -> str:
    """Why a module cannot be imported, "" if it can."""
    import importlib

    try:
        importlib.import_module(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return ""


if __name__ == "__main__":
    main()
