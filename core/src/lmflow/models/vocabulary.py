"""More tokens for a model: named ones, or pieces learnt on a corpus, each beginning as the mean of its old pieces.

Pieces are learnt as byte-pair encoding goes on (Sennrich et al., 2016, arXiv 1508.07909): the corpus is cut by the old
tokenizer, and again and again the most frequent pair becomes a piece. The new merges come after all old ones: text is
cut as before wherever no new piece applies, and no old token is lost. A tokenizer that has bytes for the characters it
does not know, as SentencePiece's do, first gets those characters of the corpus.
"""

from __future__ import annotations

import heapq
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import AddedToken

from lmflow.atomic import atomic_directory
from lmflow.errors import LmflowError
from lmflow.models.language_model import LanguageModel

TOKENIZER = "tokenizer.json"
UNCUT = ("NoneType", "Metaspace")
"""Kinds of pre-tokenizer that leave words together, as SentencePiece's tokenizers have them."""
NEW_TOKENS = "new_tokens.json"
"""Beside a model with a larger vocabulary: the tokens whose rows nothing has trained yet."""
SPACE = "▁"
BYTE = re.compile("<0x[0-9A-F]{2}>")
"""Pieces for the bytes of characters that are not in the vocabulary."""
Pair = tuple[str, str]


@dataclass(frozen=True)
class Extension:
    """What was added: each new token with the ids of the old ones it stands for."""

    model: LanguageModel
    added: Mapping[str, tuple[int, ...]]
    ids: Mapping[str, int]
    """The id of each."""


def add_tokens(model: LanguageModel, tokens: Sequence[str], *, special: bool = False) -> Extension:
    """The model with these tokens, wherever they stand in a text; those it has already are left alone.

    The model is changed. Raises LmflowError where there is nothing to add.
    """
    new = [token for token in dict.fromkeys(tokens) if token and not is_token(model.tokenizer, token)]
    if not new:
        raise LmflowError("There is nothing to add: the tokenizer has all of these tokens.")
    pieces = {token: tuple(model.tokenizer(token, add_special_tokens=False)["input_ids"]) for token in new}
    # A text that is the encoding of another, as é is that of a byte, would be taken for that one: it becomes a piece.
    taken = [] if special else [token for token in new if token in model.tokenizer.get_vocab()]
    tokenizer = model.tokenizer
    if taken:
        _byte_pairs(model)
        merges = [pair for token in taken for pair in _merges_of(tokenizer.convert_ids_to_tokens(pieces[token]))]
        tokenizer, _ = _with_pieces(model, (), list(dict.fromkeys(merges)))
    # Not normalised, so that they are found within words too, where a normaliser would put a space before them.
    marks = [AddedToken(token, special=special, normalized=False) for token in new if token not in taken]
    tokenizer.add_tokens(marks, special_tokens=special)
    found = {token: tokenizer(token, add_special_tokens=False)["input_ids"] for token in new}
    if lost := next((token for token, ids in found.items() if len(ids) != 1 or ids[0] in pieces[token]), None):
        raise LmflowError(
            f"{lost!r} cannot be made a token of {model.source}: its tokenizer changes texts before it looks for tokens"
        )
    return _resized(model, tokenizer, pieces, {token: ids[0] for token, ids in found.items()})


def _merges_of(pieces: Sequence[str]) -> list[Pair]:
    """The merges that make one piece of several, from the left."""
    return [("".join(pieces[:end]), pieces[end]) for end in range(1, len(pieces))]


def is_token(tokenizer: Any, text: str) -> bool:
    """Whether a text is one token already; texts are compared, as vocabularies hold pieces in an encoding of theirs."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id and tokenizer.decode(ids) == text


def learn_pieces(model: LanguageModel, texts: Iterable[str], count: int) -> Extension:
    """The model with up to `count` pieces that make these texts shorter.

    The weights are changed, the tokenizer is another one. Raises LmflowError for a tokenizer that is no byte-pair
    encoding, and where no pair occurs twice.
    """
    vocabulary = _byte_pairs(model)["vocab"]
    words = words_of(model.tokenizer, texts)
    characters = unknown_characters(words, vocabulary, count)
    known = {*vocabulary, *characters}
    merges = learn_merges(parts_of(words, known), count - len(characters), known)
    if not characters and not merges:
        raise LmflowError("The corpus has no pair of pieces that occurs twice, so there is nothing to learn.")
    tokenizer, pieces = _with_pieces(model, characters, merges)
    return _resized(model, tokenizer, pieces, {piece: tokenizer.convert_tokens_to_ids(piece) for piece in pieces})


def _byte_pairs(model: LanguageModel) -> dict[str, Any]:
    """The vocabulary and merges of the model's tokenizer. Raises LmflowError for one that is no byte-pair encoding."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    stored = json.loads(backend.to_str())["model"] if backend is not None else {}
    if stored.get("type") != "BPE":
        raise LmflowError(
            f"Pieces are learnt for byte-pair encodings, and the tokenizer of {model.source} is "
            f"{stored.get('type', 'no fast tokenizer')}. Name tokens to add instead."
        )
    return dict(stored)


def _with_pieces(
    model: LanguageModel, characters: Sequence[str], merges: Sequence[Pair]
) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The model's tokenizer with these characters and merges after its own, and the old tokens of each new piece."""
    with TemporaryDirectory() as folder:
        model.tokenizer.save_pretrained(folder)
        file = Path(folder) / TOKENIZER
        stored = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = stored["model"]["vocab"]
        pieces = _old_pieces(characters, merges, vocabulary)
        for number, piece in enumerate(pieces, len(model.tokenizer)):
            vocabulary[piece] = number
        as_lists = not stored["model"]["merges"] or isinstance(stored["model"]["merges"][0], list)
        stored["model"]["merges"] += [list(pair) if as_lists else " ".join(pair) for pair in merges]
        file.write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
        return type(model.tokenizer).from_pretrained(folder), pieces


def words_of(tokenizer: Any, texts: Iterable[str]) -> Counter[tuple[str, ...]]:
    """How often each word of the texts occurs, as the pieces the tokenizer cuts it into.

    A character that it has only as bytes is one piece.
    """
    backend = tokenizer.backend_tokenizer
    special = set(tokenizer.all_special_tokens)
    cuts_words = type(backend.pre_tokenizer).__name__ not in UNCUT
    fallback = getattr(backend.model, "byte_fallback", False)
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        found = backend.encode(text, add_special_tokens=False)
        numbered = zip(found.tokens, found.word_ids, strict=True)
        word: list[str] = []
        previous = None
        for piece, number in _with_characters(numbered) if fallback else numbered:
            begins = number != previous or not (cuts_words or _same_word(word, piece))
            if begins and word:
                counts[tuple(word)] += 1
                word = []
            previous = number
            if piece not in special and number is not None:
                word.append(piece)
        if word:
            counts[tuple(word)] += 1
    return counts


def unknown_characters(words: Mapping[tuple[str, ...], int], vocabulary: Mapping[str, int], count: int) -> list[str]:
    """Up to `count` characters the vocabulary has only as bytes, the most frequent first, each occurring twice."""
    found: Counter[str] = Counter()
    for word, times in words.items():
        for piece in word:
            if piece not in vocabulary:
                found[piece] += times
    return [piece for piece, times in sorted(found.items(), key=lambda item: (-item[1], item[0])) if times > 1][:count]


def parts_of(words: Mapping[tuple[str, ...], int], known: Collection[str]) -> Counter[tuple[str, ...]]:
    """The words, cut at each piece that is not among those known, which can be part of none."""
    counts: Counter[tuple[str, ...]] = Counter()
    for word, times in words.items():
        for is_known, part in groupby(word, known.__contains__):
            if is_known:
                counts[tuple(part)] += times
    return counts


def _with_characters(pieces: Iterable[tuple[str, int | None]]) -> Iterator[tuple[str, int | None]]:
    """The pieces with each character of several bytes, which stands as a piece a byte, put together."""
    for is_byte, some in groupby(pieces, lambda each: bool(BYTE.fullmatch(each[0]))):
        if not is_byte:
            yield from some
            continue
        run = list(some)
        text = bytes(int(piece[3:5], 16) for piece, _ in run).decode("utf-8", "replace")
        for character in text:
            # Of one byte, it is one token already: another for it would cut other texts anew.
            yield (f"<0x{ord(character):02X}>" if character.isascii() else character), run[0][1]


def _same_word(word: Sequence[str], piece: str) -> bool:
    """Whether a piece goes on with the word, in a text that the tokenizer takes as one: SentencePiece's rules."""
    if not word or piece.startswith(SPACE) or BYTE.fullmatch(piece) or BYTE.fullmatch(word[-1]):
        return False
    return word[-1].endswith(SPACE) or _is_letter(word[-1][-1]) == _is_letter(piece[0])


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def learn_merges(words: Mapping[tuple[str, ...], int], count: int, known: Iterable[str]) -> list[Pair]:
    """Up to `count` merges, the most frequent pair first (of equals the first in order), each occurring at least twice.

    A pair whose result is known already is left alone: the tokenizer had its reasons not to make it here.
    """
    taken = set(known)
    cut = [list(word) for word in words]
    frequency = list(words.values())
    totals: Counter[Pair] = Counter()
    places: dict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(cut):
        for pair in pairwise(word):
            totals[pair] += frequency[index]
            places[pair].add(index)
    queue = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(queue)
    merges: list[Pair] = []
    while queue and len(merges) < count:
        total, pair = heapq.heappop(queue)
        if -total != totals[pair] or -total < 2:  # an entry from before the pair was used up elsewhere
            continue
        if "".join(pair) in taken:
            continue
        merges.append(pair)
        taken.add("".join(pair))
        changed: set[Pair] = set()
        for index in places.pop(pair):
            for old in zip(cut[index], cut[index][1:]):
                totals[old] -= frequency[index]
                changed.add(old)
            cut[index] = merged(cut[index], pair)
            for new in zip(cut[index], cut[index][1:]):
                totals[new] += frequency[index]
                places[new].add(index)
                changed.add(new)
        for each in changed:
            if totals[each] >= 2:
                heapq.heappush(queue, (-totals[each], each))
    return merges


def merged(word: Sequence[str], pair: Pair) -> list[str]:
    """The word with every such pair as one piece, from the left."""
    result: list[str] = []
    for piece in word:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def _old_pieces(
    characters: Sequence[str], merges: Sequence[Pair], vocabulary: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """The old tokens each new piece is made of."""
    made = {each: tuple(vocabulary[f"<0x{byte:02X}>"] for byte in each.encode()) for each in characters}
    for pair in merges:
        parts = (made[piece] if piece in made else (vocabulary[piece],) for piece in pair)
        made["".join(pair)] = tuple(number for part in parts for number in part)
    return made


@torch.no_grad()
def _resized(
    model: LanguageModel, tokenizer: Any, pieces: Mapping[str, tuple[int, ...]], ids: Mapping[str, int]
) -> Extension:
    """The model with a row for every token of `tokenizer`, new ones the mean of the rows of their old pieces."""
    module: Any = model.module
    rows = module.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        module.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = {id(part.weight): part for part in (module.get_input_embeddings(), module.get_output_embeddings())}
    for token, old in pieces.items():
        for table in tables.values():  # one, where the head is tied to the embeddings
            table.weight[ids[token]] = table.weight[list(old)].float().mean(0).to(table.weight)
            if getattr(table, "bias", None) is not None:
                table.bias[ids[token]] = table.bias[list(old)].mean()
    return Extension(replace(model, module=module, tokenizer=tokenizer), pieces, ids)


# New tokens are trained


def save_extended(extension: Extension, directory: Path) -> None:
    """Write the model, and which of its tokens are new, so that their rows are trained: complete, or not at all."""
    with atomic_directory(directory) as partial:
        extension.model.save(partial)
        ids = sorted(extension.ids.values())
        (partial / NEW_TOKENS).write_text(json.dumps({"ids": ids}) + "\n", encoding="utf-8")


def mark_new_tokens(module: Any, source: str) -> None:
    """Let the model loaded from `source` know which of its tokens are new there. Raises LmflowError."""
    file = Path(source).expanduser() / NEW_TOKENS
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["ids"] if file.is_file() else []
        module.new_token_ids = tuple(int(each) for each in found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LmflowError(f"{file} is damaged: {error}; write the model anew with lmflow vocabulary.") from error


def new_tokens(module: Any) -> tuple[int, ...]:
    """The tokens of a loaded model whose rows nothing has trained yet."""
    found: tuple[int, ...] = getattr(module, "new_token_ids", ())
    return found
