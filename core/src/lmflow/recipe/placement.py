"""What quantised weights and weights on several devices do not go with in a training run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from lmflow.components import Component, Model, Tuner
from lmflow.recipe.sections.launch import LaunchOptions
from lmflow.recipe.settings import Setting


def placement_problems(
    model: Model | None,
    tuner: Tuner | None,
    launch: LaunchOptions | None,
    settings: Mapping[str, Setting],
    tuners: Iterable[type[Component]],
) -> Iterator[str]:
    """What to say of a model's `quantization` and `device_map`, found before anything is loaded.

    `tuners` are those that are installed.
    """
    if model is None:
        return
    place = {
        key: settings[f"model.{key}"].place if f"model.{key}" in settings else f"model.{key}"
        for key in ("quantization", "device_map")
    }
    if model.device_map is not None:
        yield (
            f"{place['device_map']}: for lmflow generate, chat and eval; training keeps all of a model on one device "
            "(where it does not fit: --model.quantization, or --launch.strategy fsdp)"
        )
    if model.quantization is None:
        return
    if tuner is not None and not tuner.supports_quantization:
        able = [each.name for each in tuners if issubclass(each, Tuner) and each.supports_quantization]
        others = f"choose --tuner {' or '.join(sorted(able))}" if able else "install a tuner that adds weights to them"
        yield (
            f"{place['quantization']}: tuner {tuner.name} changes the weights of linear layers, which cannot move "
            f"while they are quantised; {others}, or leave the option out"
        )
    if launch is not None and launch.total > 1 and launch.strategy != "ddp":
        yield (
            f"{place['quantization']}: quantised weights cannot be split over processes, as launch.strategy "
            f"{launch.strategy} does; use ddp"
        )
