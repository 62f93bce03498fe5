"""The evaluators against counting by hand, models that know the answer, and brute force."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lmflow.components import Evaluation, GenerateRequest
from lmflow.data.sample import Message, Sample
from lmflow.errors import DataError
from lmflow.inference.hf import HuggingFace
from lmflow.inference.types import Completion
from lmflow.models.language_model import LanguageModel
from lmflow.run.log import RunLog
from lmflow.testing.contexts import evaluate_context
from lmflow.testing.tiny import tiny_model as make_tiny_model
from lmflow_longctx import plots
from lmflow_longctx.contexts import Dynamic
from lmflow_longctx.passkey import Passkey
from lmflow_longctx.passkey_prompts import first_number, hide, make_tests, others
from lmflow_longctx.perplexity import PerplexityByLength
from lmflow_longctx.scoring import begin_anew, ends_of_windows

WORDS = "the quick brown fox jumps over the lazy dog and a model learns to answer and then to stop "


@pytest.fixture
def log() -> RunLog:
    return RunLog(None, lambda _event, **_values: None)


def plain(text: str) -> Sample:
    return Sample((Message("assistant", text),), templated=False, source="text")


class Reader(nn.Module):
    """Gives probability `sure` to the token that stood `back` places before the one to predict, if it is that far."""

    def __init__(self, vocabulary: int, back: int, sure: float = 0.9) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.vocabulary, self.back, self.sure = vocabulary, back, sure
        self.config = None

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **_: Any) -> Any:
        rest = (1 - self.sure) / (self.vocabulary - 1)
        probability = torch.full((*input_ids.shape, self.vocabulary), 1 / self.vocabulary)
        for row, ids in enumerate(input_ids.tolist()):
            for at in range(len(ids)):
                source = at + 1 - self.back
                if source >= 0:
                    probability[row, at] = rest
                    probability[row, at, ids[source]] = self.sure
        return SimpleNamespace(logits=probability.log()[:, -logits_to_keep:])


class TestWindows:
    def test_by_hand(self):
        # text 0 has 10 tokens: windows of up to 6 end at 6, 8, 10; text 1 is too short; text 2 fits once
        assert ends_of_windows([10, 5, 6], longest=6, stretch=2, most=9) == [(0, 6), (0, 8), (0, 10), (2, 6)]

    def test_thinned_evenly(self):
        assert ends_of_windows([100], longest=20, stretch=10, most=3) == [(0, 20), (0, 50), (0, 80)]


class TestPerplexityByLength:
    def test_is_the_perplexity_of_the_last_tokens(self, tiny_model, log):
        evaluator = PerplexityByLength(lengths=[12, 24, 48], stretch=8, windows=3)
        sample = plain(WORDS * 12)
        found = evaluator.evaluate(evaluate_context(tiny_model, [sample], HuggingFace(), log))
        [sequence] = tiny_model.encode(sample, "all")
        for row in found.rows:
            losses = []
            for _, end in ends_of_windows([len(sequence)], 48, 8, 3):
                ids = torch.tensor([sequence.ids[end - row["length"] : end]])
                with torch.no_grad():
                    scores = tiny_model.module(ids).logits.log_softmax(-1)
                losses += [-scores[0, at - 1, ids[0, at]].item() for at in range(row["length"] - 8, row["length"])]
            assert len(losses) == row["tokens"] == 24
            assert row["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
            assert found.metrics[f"perplexity_{row['length']}"] == pytest.approx(math.exp(row["loss"]))

    @pytest.mark.parametrize("batch_tokens", [1, 100, 8192])
    def test_batches_change_nothing(self, tiny_model, log, batch_tokens: int):
        options = {"lengths": [16, 32], "stretch": 8, "windows": 5}
        whole = PerplexityByLength(**options).evaluate(
            evaluate_context(tiny_model, [plain(WORDS * 12)], HuggingFace(), log)
        )
        parts = PerplexityByLength(**options, batch_tokens=batch_tokens)
        found = parts.evaluate(evaluate_context(tiny_model, [plain(WORDS * 12)], HuggingFace(), log))
        assert found.metrics == pytest.approx(whole.metrics, rel=1e-5)

    def test_falls_where_the_context_helps(self, tiny_model, log):
        """A text of period 40 read by a model that copies from 40 back: surprised by windows of 24, sure in 80."""
        period = torch.randint(10, 60, (40,), generator=torch.Generator().manual_seed(0)).tolist()
        model = tiny_model.with_module(Reader(len(tiny_model.tokenizer), back=40))
        text = SimpleNamespace(ids=period * 6)
        object.__setattr__(model, "encode", lambda *_: [text])
        found = PerplexityByLength(lengths=[24, 80], stretch=8).evaluate(
            evaluate_context(model, [plain("")], HuggingFace(), log)
        )
        assert found.metrics["perplexity_24"] == pytest.approx(len(model.tokenizer), rel=1e-4)
        assert found.metrics["perplexity_80"] == pytest.approx(1 / 0.9, rel=1e-4)

    def test_dynamic_positions_are_measured_the_same_twice(self, tiny_model, make_llama, log):
        """Transformers keeps the frequencies of the longest text; each length must start without them."""
        config = tiny_model.module.config
        config.max_position_embeddings = 32
        Dynamic(factor=4).configure(config)
        torch.manual_seed(0)
        model = tiny_model.with_module(type(tiny_model.module)(config).eval())
        evaluator = PerplexityByLength(lengths=[32, 64, 128], stretch=16)
        first = evaluator.evaluate(evaluate_context(model, [plain(WORDS * 20)], HuggingFace(), log))
        assert evaluator.evaluate(evaluate_context(model, [plain(WORDS * 20)], HuggingFace(), log)) == first

    def test_default_lengths_are_those_of_the_model(self, tiny_model, log):
        found = PerplexityByLength(stretch=8).evaluate(
            evaluate_context(tiny_model, [plain(WORDS * 40)], HuggingFace(), log)
        )
        assert [row["length"] for row in found.rows] == [64, 128, 256]

    def test_beyond_the_model_is_said(self, tiny_model, log):
        evaluator = PerplexityByLength(lengths=[128, 300], stretch=8)
        evaluator.evaluate(evaluate_context(tiny_model, [plain(WORDS * 40)], HuggingFace(), log))
        assert any("beyond the model's 256 tokens: 300" in note for note in log.notes)

    def test_texts_too_short(self, tiny_model, log):
        with pytest.raises(DataError, match=r"no sample is as long as 256 tokens, the longest has \d+"):
            PerplexityByLength().evaluate(evaluate_context(tiny_model, [plain(WORDS)], HuggingFace(), log))

    def test_nothing_before_the_stretch(self, tiny_model, log):
        with pytest.raises(DataError, match="none before the 32"):
            PerplexityByLength(lengths=[32]).evaluate(
                evaluate_context(tiny_model, [plain(WORDS * 40)], HuggingFace(), log)
            )

    def test_positions_that_end(self, make_tokenizer, log):
        tokenizer = make_tokenizer()
        config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32)
        model = LanguageModel(GPT2LMHeadModel(config).eval(), tokenizer, "gpt2")
        evaluator = PerplexityByLength(lengths=[16, 64], stretch=8)
        with pytest.raises(DataError, match=r"lengths 64: this model has positions for 32"):
            evaluator.evaluate(evaluate_context(model, [plain(WORDS * 20)], HuggingFace(), log))


class Searcher(HuggingFace):
    """An inferencer that reads the text as a person would, but sees only its last `sight` tokens."""

    def __init__(self, tokenizer: Any, sight: int) -> None:
        super().__init__()
        object.__setattr__(self, "seen", lambda ids: tokenizer.decode(ids[-sight:]))

    def generate(self, request: GenerateRequest) -> Any:
        assert request.sampling.temperature == 0
        answers = []
        for prompt in request.prompts:
            _, found, rest = self.seen(list(prompt.ids)).partition("The pass key is ")
            digits = rest.split(".")[0] if found and rest.split(".")[0].isdigit() else "7"
            answers.append([Completion((1,), f" {digits}.", (0.0,), "length")])
        return answers


class TestPasskey:
    LENGTH = 256

    def test_the_text_has_its_length_and_hides_the_number_twice(self, tiny_model):
        for depth in (0.0, 0.3, 1.0):
            test = hide(tiny_model, self.LENGTH, depth, "48151")
            text = tiny_model.tokenizer.decode(test.prompt)
            answer = len(tiny_model.tokenizer(" 48151", add_special_tokens=False)["input_ids"]) + 2
            assert len(test.prompt) + answer == self.LENGTH
            assert text.count("48151") == 2
            assert text.endswith("The pass key is")
            assert "The pass key is 48151. Remember it." in text

    def test_depths_are_in_order(self, tiny_model):
        def place(depth: float) -> float:
            text = tiny_model.tokenizer.decode(hide(tiny_model, 1024, depth, "48151").prompt)
            return text.index("48151") / len(text)

        places = [place(depth) for depth in (0.0, 0.25, 0.5, 0.75, 1.0)]
        assert places == sorted(places)
        assert places[0] < 0.2
        assert places[-1] > 0.8
        assert places[2] == pytest.approx(0.5, abs=0.1)

    def test_the_same_seed_hides_the_same_numbers(self, tiny_model):
        first = make_tests(tiny_model, 256, [0.5], 3, 5, seed=1)
        assert make_tests(tiny_model, 256, [0.5], 3, 5, seed=1) == first
        assert make_tests(tiny_model, 256, [0.5], 3, 5, seed=2) != first
        assert len({test.key for test in first}) == 3

    def test_a_reader_of_everything_finds_every_number(self, log):
        model = make_tiny_model(max_position_embeddings=512)
        evaluator = Passkey(lengths=[256, 512], trials=2)
        found = evaluator.evaluate(evaluate_context(model, [], Searcher(model.tokenizer, 512), log))
        assert found.metrics["passkey_accuracy"] == 1.0
        assert found.metrics["passkey_chance"] == pytest.approx(1e-5)
        assert len(found.rows) == 2 * 5
        assert all(row["trials"] == 2 for row in found.rows)

    def test_a_reader_of_the_end_finds_only_what_is_there(self, log):
        model = make_tiny_model(max_position_embeddings=1024)
        evaluator = Passkey(lengths=[1024], trials=2, depths=[0.0, 1.0])
        found = evaluator.evaluate(evaluate_context(model, [], Searcher(model.tokenizer, 200), log))
        assert {row["depth"]: row["accuracy"] for row in found.rows} == {0.0: 0.0, 1.0: 1.0}
        assert found.metrics["passkey_accuracy_1024"] == 0.5

    def test_choice_prefers_what_the_text_says(self, tiny_model, log):
        """A model that copies from one fixed distance back is sure of the number hidden just there, and of no other."""
        test = hide(tiny_model, 512, 1.0, "48151")
        answer = tiny_model.tokenizer(" 48151", add_special_tokens=False)["input_ids"]
        last = max(at for at in range(len(test.prompt)) if test.prompt[at : at + len(answer)] == answer)
        model = tiny_model.with_module(Reader(len(tiny_model.tokenizer), back=len(test.prompt) - last))
        evaluator = Passkey(lengths=[512], depths=[0.0, 1.0], trials=2, scoring="choice", alternatives=4)
        found = evaluator.evaluate(evaluate_context(model, [], HuggingFace(), log))
        assert {row["depth"]: row["accuracy"] for row in found.rows}[1.0] == 1.0
        assert {row["depth"]: row["accuracy"] for row in found.rows}[0.0] == 0.0
        assert found.metrics["passkey_chance"] == pytest.approx(0.2)

    def test_choice_of_an_ignorant_model_is_chance(self, tiny_model, log):
        evaluator = Passkey(lengths=[250], depths=[0.0, 0.5], trials=20, scoring="choice", alternatives=3)
        accuracy = evaluator.evaluate(evaluate_context(tiny_model, [], HuggingFace(), log)).metrics["passkey_accuracy"]
        # 40 trials at 1/4: standard deviation 0.07
        assert 0.04 < accuracy < 0.46

    def test_greedy_with_the_real_inferencer(self, tiny_model, log):
        evaluator = Passkey(lengths=[256], trials=1, depths=[0.5])
        assert (
            evaluator.evaluate(evaluate_context(tiny_model, [], HuggingFace(), log)).metrics["passkey_accuracy"] == 0.0
        )

    def test_a_length_without_room(self, tiny_model, log):
        with pytest.raises(DataError, match=r"64 tokens do not hold introduction, number and question"):
            Passkey(lengths=[64]).evaluate(evaluate_context(tiny_model, [], HuggingFace(), log))

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            (" 48151.", "48151"),
            ("48151", "48151"),
            (" 481516", "481516"),
            (" not 48151", None),
            ("", None),
            (": 7", "7"),
        ],
    )
    def test_what_an_answer_begins_with(self, text: str, number: str | None):
        assert first_number(text) == number

    def test_alternatives_are_others(self):
        import random

        found = others(random.Random(0), "5", 20)
        assert sorted(found) == ["1", "2", "3", "4", "6", "7", "8", "9"]


ROWS = [{"length": length, "depth": depth, "accuracy": depth, "trials": 1} for length in (256, 512) for depth in (0, 1)]
CURVE = [
    {"length": 256, "perplexity": 4.5},
    {"length": 512, "perplexity": 9.0},
    {"length": 1024, "perplexity": math.inf},
]


class TestPlots:
    def test_heatmap(self, tmp_path: Path):
        pytest.importorskip("matplotlib")
        paths = Passkey().plot(Evaluation({}, ROWS), tmp_path / "new")
        assert [path.name for path in paths] == ["passkey.svg", "passkey.png"]
        plot = paths[0].read_text(encoding="utf-8")
        ElementTree.fromstring(plot)
        assert plot.count("<rect") == 4
        assert "512 tokens, depth 100%: 100%" in plot
        assert paths[1].read_bytes().startswith(b"\x89PNG")

    def test_curve(self, tmp_path: Path):
        pytest.importorskip("matplotlib")
        paths = PerplexityByLength().plot(Evaluation({}, CURVE), tmp_path)
        assert [path.name for path in paths] == ["perplexity-by-length.svg", "perplexity-by-length.png"]
        plot = paths[0].read_text(encoding="utf-8")
        ElementTree.fromstring(plot)
        assert plot.count("<circle") == 2, "an infinite value has no place"
        assert "1,024" in plot

    def test_without_matplotlib(self, tmp_path: Path, tiny_model, log, monkeypatch):
        monkeypatch.setattr(plots, "find_spec", lambda _: None)
        monkeypatch.setattr("lmflow_longctx.lengths.find_spec", lambda _: None)
        assert [path.suffix for path in Passkey().plot(Evaluation({}, ROWS), tmp_path)] == [".svg"]
        assert [path.suffix for path in PerplexityByLength().plot(Evaluation({}, CURVE), tmp_path)] == [".svg"]
        PerplexityByLength(stretch=8).evaluate(evaluate_context(tiny_model, [plain(WORDS * 40)], HuggingFace(), log))
        assert any("pip install 'lmflow-longctx[plots]'" in note for note in log.notes)


def test_a_pass_over_one_token_makes_dynamic_positions_forget(make_llama):
    config = make_llama().config
    config.max_position_embeddings = 16
    Dynamic(factor=2).configure(config)
    module = type(make_llama())(config).eval()
    model = LanguageModel(module, SimpleNamespace(pad_token_id=2), "")
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        before = module(ids).logits
        module(torch.arange(3, 43)[None])
        assert not torch.equal(module(ids).logits, before), "Transformers no longer needs this"
        begin_anew(model)
        assert torch.equal(module(ids).logits, before)


def test_an_answer_beyond_the_context_is_refused_before_anything_is_promised(tiny_model):
    from lmflow_longctx.lengths import check_within

    check_within(tiny_model, [64, 256], option="lengths")
    with pytest.raises(DataError, match=r"--evaluator\.lengths 257: the model reads 256 tokens, and writes no answer"):
        check_within(tiny_model, [64, 257], option="lengths")
