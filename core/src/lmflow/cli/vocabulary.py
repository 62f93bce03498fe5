"""`lmflow vocabulary`: more tokens for a model, written as a model of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lmflow.atomic import atomic_directory
from lmflow.cli.installed import installed_plugins
from lmflow.components import LoadRequest
from lmflow.errors import RecipeError, RunDirectoryError

Source = Annotated[str, typer.Argument(metavar="MODEL", help="What --model would name.")]
Output = Annotated[Path, typer.Option(help="Directory to write; it must not exist yet.")]
Tokens = Annotated[list[str] | None, typer.Option("--add", metavar="TOKEN", help="A token to add; may be repeated.")]
Special = Annotated[bool, typer.Option("--special", help="They are marks, which answers do not show.")]
Corpus = Annotated[str | None, typer.Option(metavar="PATH", help="Records whose texts pieces are learnt on.")]
Pieces = Annotated[int, typer.Option(min=1, help="How many pieces to learn.")]


def command(
    model: Source,
    output: Output,
    add: Tokens = None,
    special: Special = False,
    corpus: Corpus = None,
    pieces: Pieces = 1000,
) -> None:
    """Add tokens, or pieces learnt on a corpus; each begins as the mean of the old tokens it stands for."""
    if bool(add) == bool(corpus):
        raise RecipeError("--add and --corpus: give one of them, tokens or a corpus to learn them on")
    if output.exists():
        raise RunDirectoryError(f"{output} exists; choose another directory with --output")
    from lmflow.data.dataset import read_samples
    from lmflow.data.formats import Formats
    from lmflow.models.vocabulary import add_tokens, learn_pieces
    from lmflow.recipe.resolve import model_from_reference
    from lmflow.recipe.sections.data import Reading

    plugins = installed_plugins()
    texts: list[str] = []
    if corpus is not None:
        samples = read_samples(Reading(path=corpus), Formats(plugins.classes("data")))
        texts = [turn.content for sample in samples for turn in sample.messages]
    loaded = model_from_reference(plugins, model).load(LoadRequest(plugins=plugins))
    before = sum(len(loaded.tokenizer(text)["input_ids"]) for text in texts)
    made = add_tokens(loaded, add, special=special) if add else learn_pieces(loaded, texts, pieces)
    with atomic_directory(output) as partial:
        made.model.save(partial)
    sys.stdout.write(f"{output}\n")
    ids = made.model.tokenizer.convert_tokens_to_ids(list(made.added)[:8])
    shown = ", ".join(repr(made.model.tokenizer.decode([each])) for each in ids)
    tokens = "1 token" if len(made.added) == 1 else f"{len(made.added):,} tokens"
    sys.stderr.write(f"{tokens} added: {shown}{', …' if len(made.added) > 8 else ''}\n")
    if texts:
        after = sum(len(made.model.tokenizer(text)["input_ids"]) for text in texts)
        sys.stderr.write(f"the corpus takes {after:,} tokens instead of {before:,} ({after / before:.0%})\n")
