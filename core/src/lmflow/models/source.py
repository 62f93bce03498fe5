"""Where a model's files are, and the one way to them: rules for paths, the hub, foreign code and loading reports."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmflow.data.hub import hub_is_out_of_reach, is_kept_from_hub
from lmflow.errors import LmflowError, RecipeError
from lmflow.models.reading import explained_failure, first_lines, reading

SHOWN = 3
"""Tensors, of those that are wrong, that a message names."""
COMPUTED = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|\.attention\.(masked_)?bias$|position_ids$")
"""Tensors that older checkpoints hold although a model computes them: nothing is lost where they are not read."""


@dataclass(frozen=True)
class ModelSource:
    """A model directory, or a name on the hub; all that is read of it is read with the same rules.

    Code that comes with a model runs only where `trust_remote_code` says so, and nobody is asked on standard input.
    """

    path: str
    option: str = "model.path"
    """Where the path was named, for messages."""
    revision: str | None = None
    trust_remote_code: bool = False
    config_file: str | None = None
    """The file of the configuration, where it has another name than Transformers gives it."""

    @property
    def settings(self) -> dict[str, Any]:
        """What configuration, weights and tokenizer are all loaded with."""
        revision = {"revision": self.revision} if self.revision else {}
        kept_only = {"local_files_only": True} if asks_hub(self.path) and hub_is_out_of_reach() else {}
        return {"trust_remote_code": self.trust_remote_code, **revision, **kept_only}

    @property
    def place(self) -> str:
        """The path as libraries are to be given it."""
        here = Path(self.path).expanduser()
        return str(here) if here.exists() else self.path

    def check(self) -> None:
        """Raise RecipeError when the path looks like a place on this machine and no model is there.

        A name on the hub is refused where the hub is out of reach and the model was not fetched before.
        """
        check_path(self.path, self.revision, self.option)

    def configuration(self) -> Any:
        """The configuration. Raises LmflowError in one line."""
        from transformers import AutoConfig

        with self.explained(), reading(self.path, "configuration", self.option):
            place = self.place if self.config_file is None else str(Path(self.place) / self.config_file)
            return AutoConfig.from_pretrained(place, **self.settings)

    def tokenizer(self, **options: Any) -> Any:
        """The tokenizer. Raises LmflowError in one line."""
        from transformers import AutoTokenizer

        with self.explained(), reading(self.path, "tokenizer", self.option):
            return AutoTokenizer.from_pretrained(self.place, **self.settings, **options)

    def generation_config(self) -> Any:
        """The generation configuration; None for a model without one."""
        from transformers import GenerationConfig

        with self.explained():
            try:
                return GenerationConfig.from_pretrained(self.place, **self.settings)
            except OSError:
                return None

    def weights(self, auto_class: Any, config: Any, unread: str | None = None, **options: Any) -> Any:
        """The model that one of Transformers' Auto classes builds of the configuration, every tensor from the files.

        `unread` is an expression for tensors that the files may hold for another use, such as the head of another
        task. Raises LmflowError naming tensors that are missing, have no place in the model, or have another shape;
        what libraries raise beside is left to `explained`.
        """
        reported = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # the report names those, with shapes
        try:
            module, report = auto_class.from_pretrained(
                self.place, config=config, **reported, **self.settings, **options
            )
        except RuntimeError as error:
            if "conver" not in str(error):  # Transformers fits other names and layouts to its own
                raise
            raise LmflowError(f"{self.option} {self.path}: it cannot be loaded: {first_lines(error)}") from error
        check_report(self.path, self.option, report, unread)
        return module

    def explained(self) -> AbstractContextManager[None]:
        """Within the context, what libraries raise for files they cannot read is raised as LmflowError."""
        return explained_failure(self.path, self.option)


# What was loaded


def check_report(path: str, option: str, report: Mapping[str, Any], unread: str | None = None) -> None:
    """Raise LmflowError where what was read of a model's weights is not what the model consists of.

    `report` is Transformers' own: names in `missing_keys` and `unexpected_keys`, names with the shapes found and wanted
    in `mismatched_keys`. Transformers has taken out what a model declares to be missing or left over by intent.
    """
    missing, left = sorted(report.get("missing_keys", ())), sorted(report.get("unexpected_keys", ()))
    left = [name for name in left if not (COMPUTED.search(name) or (unread and re.search(unread, name)))]
    other = [
        f"{name} ({_shape(found)} in the file, {_shape(wanted)} by the configuration)"
        for name, found, wanted in sorted(report.get("mismatched_keys", ()))
    ]
    faults = [
        *_fault("missing", missing),
        *_fault("in the files and not in the model", left),
        *_fault("of another shape", other),
        *_fault("not converted", sorted(map(str, report.get("error_msgs", ())))),
    ]
    if faults:
        raise LmflowError(
            f"{option} {path}: its weights are not those of its configuration: {'; '.join(faults)}. They would be "
            "random, or left out. Copy the model again from where it was saved, or mend its config.json."
        )


def _fault(what: str, names: Collection[str]) -> list[str]:
    """A sentence on tensors, of which some are named; none where there are none."""
    if not names:
        return []
    shown = [*names][:SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return [f"{len(names)} tensor{'s' * (len(names) > 1)} {what}: {', '.join(shown)}{more}"]


def _shape(size: Any) -> str:
    return " x ".join(map(str, size))


# Places


def asks_hub(path: str) -> bool:
    """Whether `path` is a name on the hub, OWNER/NAME, rather than a place on this machine."""
    there = Path(path).expanduser().exists()
    return not there and not path.startswith((".", "/", "~")) and path.count("/") == 1


def check_path(path: str, revision: str | None = None, option: str = "model.path") -> None:
    """Raise RecipeError when `path` looks like a place on this machine and nothing is there.

    A name on the hub is refused where the hub is out of reach and the model was not fetched before. `option` says where
    the path was named.
    """
    place = Path(path).expanduser()
    if place.exists():
        if place.is_dir() and not (place / "config.json").is_file():
            raise RecipeError([f"{option}: {path} is a directory without config.json, so it holds no model"])
        return
    if asks_hub(path):
        if hub_is_out_of_reach() and not is_kept_from_hub(path, "config.json", revision):
            raise RecipeError([f"{option}: {path} does not exist here, and the model hub is out of reach"])
        return
    siblings = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, siblings, n=1)
    hint = f"; did you mean {place.parent / near[0]}?" if near else ""
    raise RecipeError([f"{option}: {path} does not exist{hint}"])
