"""Quantised weights: how Transformers is asked for them, what they take, and models that have only their shapes.

bitsandbytes stores 4-bit weights two to a byte, with a scale for every 64 of them that may be stored in 8 bits itself,
in groups of 256 (Dettmers et al., 2023, arXiv 2305.14314, sections 2 and 3); and 8-bit weights with a float32 scale for
every row (Dettmers et al., 2022, arXiv 2208.07339).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lmflow.components import LoadRequest, Quantization
from lmflow.errors import LmflowError

BLOCK = 64
"""4-bit weights that share a scale."""
GROUP = 256
"""Scales that share a scale of their own."""
LEVELS = 16
"""Values that 4 bits stand for; each layer keeps its table of them, in float32."""

# bitsandbytes warns at every product in 8 bits that it computes in float16, and, when PEFT or Transformers imports it,
# of kernels on the hub that it does without.
for _name in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def placement_settings(config: Any, request: LoadRequest, skeleton: Callable[[], nn.Module]) -> dict[str, Any]:
    """What Transformers is told of the request's quantization and placement; empty where it has neither.

    `skeleton` makes the model without values, whose layers are looked at. Raises LmflowError for a model that is stored
    quantised already.
    """
    settings: dict[str, Any] = {}
    if request.quantization is not None:
        if stored := stored_quantization(config):
            raise LmflowError(
                f"model.quantization {request.quantization.kind}: the weights are stored quantised already ({stored}); "
                "leave the option out, or give the model they were made from"
            )
        settings = {"quantization_config": _bitsandbytes(request.quantization, request.dtype, skeleton())}
        settings["device_map"] = {"": request.device}  # quantised where they are to be, as they cannot all be moved
    if request.device_map is not None:
        settings["device_map"] = request.device_map
    return settings


def stored_quantization(config: Any) -> str | None:
    """The method by which a configuration says its weights are quantised; None where they are not."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method) or "unknown")


def _bitsandbytes(quantization: Quantization, dtype: str, skeleton: nn.Module) -> Any:
    from transformers import BitsAndBytesConfig

    kept = unquantized_layers(skeleton, quantization)
    if quantization.kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=kept,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_use_double_quant=quantization.double_quantization,
        bnb_4bit_compute_dtype=getattr(torch, quantization.compute_dtype or dtype),
    )


def unquantized_layers(module: nn.Module, quantization: Quantization) -> list[str]:
    """Names of the parts that keep their weights: the output head, what is tied, and layers that have no whole blocks.

    In 4 bits a layer whose inputs are no multiple of a block's 64 is kept too: bitsandbytes 0.49 and 0.50 unpack it
    wrongly on a CPU, with three times the error there should be, and have no fast kernel for it elsewhere.
    """
    from transformers.quantizers.base import HfQuantizer

    choose: Callable[..., list[str]] = HfQuantizer.get_modules_to_not_convert
    kept = choose(module, None, getattr(module, "_keep_in_fp32_modules", None))
    if quantization.kind == "int8":
        return kept
    return kept + [name for name, layer in module.named_modules() if (sizes_of(layer) or (0,))[0] % BLOCK]


def sizes_of(layer: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a layer of a kind that is quantised; None for any other."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(layer, Conv1D):
        return layer.weight.shape[0], layer.weight.shape[1]
    return (layer.in_features, layer.out_features) if type(layer) is nn.Linear else None


def keep_as_stored(module: nn.Module) -> None:
    """Have 4-bit layers multiply by the weights they store, in their compute dtype, in training and use alike.

    On processors with AVX512-BF16 bitsandbytes (0.49 and 0.50) repacks them at the first pass in eval mode: scales are
    rounded to bfloat16, going back to training rounds them again, and layers of other sizes than multiples of 64 fail.
    """
    for layer in module.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


# What quantised weights are and take


def is_quantized(module: nn.Module) -> bool:
    """Whether linear layers of the module hold their weights in another form than numbers one can add to."""
    config = getattr(module, "config", None)
    return stored_quantization(config) is not None or any(isinstance(m, QuantizedShape) for m in module.modules())


def count_parameters(module: nn.Module, *, trainable_only: bool = False) -> int:
    """Parameters of the module; of packed ones, those they stand for."""
    packed = 0 if trainable_only else sum(_packed_away(each) for each in module.modules())
    return packed + sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def _packed_away(layer: nn.Module) -> int:
    """By how many the weights of a layer are more than the numbers they are stored in."""
    weight = layer._parameters.get("weight")  # its own: adapters show the weight of the layer they wrap as theirs
    if weight is None or weight.dtype != torch.uint8 or not hasattr(layer, "in_features"):
        return 0
    return int(layer.in_features) * int(layer.out_features) - weight.numel()  # type: ignore[arg-type]


def computes_in_float32(module: nn.Module) -> bool:
    """Whether every product is one of float32 numbers, autocast apart.

    4-bit weights are turned into numbers of their compute dtype before they are multiplied; 8-bit ones are multiplied
    as they are, with inputs rounded to 8 bits.
    """
    dtypes = {p.dtype for p in module.parameters() if p.dtype != torch.uint8}
    compute = {getattr(each, "compute_dtype", None) for each in module.modules()} - {None}
    return dtypes <= {torch.float32} and compute <= {torch.float32}


def scale_bytes(weights: int, rows: int, quantization: Quantization) -> int:
    """Bytes of what so many weights of one layer, in so many rows, are stored with beside their 4 or 8 bits."""
    if quantization.kind == "int8":
        return 4 * rows
    blocks = -(-weights // BLOCK)
    if not quantization.double_quantization:
        return 4 * (blocks + LEVELS)
    return blocks + 4 * (-(-blocks // GROUP) + GROUP + LEVELS + 1)  # the mean of the scales is kept too


# Models without values


class QuantizedShape(nn.Linear):
    """A linear layer that takes the memory of a quantised one and computes shapes alone, for planning."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, quantization: Quantization) -> None:
        super().__init__(inputs, outputs, bias=bias, device="meta")
        count = inputs * outputs
        eight = quantization.kind == "int8"
        packed = torch.empty(
            (outputs, inputs) if eight else (-(-count // 2), 1),
            dtype=torch.int8 if eight else torch.uint8,
            device="meta",
        )
        self.weight = nn.Parameter(packed, requires_grad=False)
        scales = torch.empty(scale_bytes(count, outputs, quantization), dtype=torch.uint8, device="meta")
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """(…, inputs) to (…, outputs): of the right shape and dtype."""
        out: Tensor = _ShapedProduct.apply(input, self.out_features)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _ShapedProduct(torch.autograd.Function):
    """A product with weights that are unpacked for it, and again for its gradient, so that none are kept between."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, outputs: int) -> Tensor:
        ctx.outputs, ctx.inputs = outputs, input.shape[-1]
        return input @ input.new_empty(input.shape[-1], outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ gradients[0].new_empty(ctx.outputs, ctx.inputs), None


def with_quantized_shapes(module: nn.Module, quantization: Quantization) -> nn.Module:
    """The module, whose weights have no values, with those layers quantised that Transformers would quantise."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = unquantized_layers(module, quantization)
    for name, layer in list(module.named_modules()):
        sizes = sizes_of(layer)
        if sizes is not None and should_convert_module(name, kept):
            shaped = QuantizedShape(*sizes, bias=layer.bias is not None, quantization=quantization)
            module.set_submodule(name, shaped)
    return module
