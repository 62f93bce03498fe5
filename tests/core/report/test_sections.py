"""The sections of the page about a run, each from what the run left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmflow.report import sections
from lmflow.report.content import Content, Curve, read_content
from lmflow.report.sections import (
    costs,
    data,
    details,
    ending,
    forgetting,
    forgotten,
    headline,
    losses,
    others,
    responses,
    reward_text,
    rewards,
    sampled,
    sentence,
    shown,
    small_charts,
    tiles,
)


def content(**values: Any) -> Content:
    return Content("my-run", Path("my-run"), **values)


RECIPE = "tuner:\n  name: lora\naligner:\n  name: raft\nmodel:\n  name: demo\n"


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (3.0, 3.001, "Practically nothing was forgotten"),
        (3.0, 2.8, "Nothing was forgotten"),
        (3.0, 3.05, "A little was forgotten"),
        (3.0, 3.3, "Some was forgotten"),
        (3.0, 4.0, "Much was forgotten"),
        (3.0, 900.0, "the model is broken"),
    ],
)
def test_what_was_forgotten_in_words(before: float, after: float, verdict: str):
    assert verdict in forgotten(before, after)


def test_what_was_forgotten_by_hand():
    """exp(1) = 2.718, exp(1.5) = 4.482, which is 64.9% more."""
    text = forgotten(1.0, 1.5)
    assert "from 2.718 to 4.482 (+64.9%)" in text
    assert text.endswith("from 1.000 to 1.500.")


@pytest.mark.parametrize(
    "section", [rewards, losses, sections.answers, forgetting, responses, costs, data, others], ids=lambda f: f.__name__
)
def test_a_section_with_nothing_to_say_is_empty(section: Any):
    assert section(content()) == ""


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("completed", None),
        ("interrupted", "stopped before its end"),
        ("failed", "ended with an error"),
        ("running", "had not ended when this page was written"),
        ("surprising", None),
    ],
)
def test_the_headline_tells_how_the_run_ended(status: str, told: str | None):
    text = headline(content(record={"status": status, "error": "Broken: <x>"}, gaps=["There is no recipe.yaml."]))
    assert (told in text) if told else 'class="notice">The run' not in text
    assert "Broken: &lt;x&gt;" in text
    assert '<p class="notice">There is no recipe.yaml.</p>' in text
    assert f"status {'unknown' if status == 'surprising' else status}" in text


def test_the_sentence_says_as_much_as_is_known():
    assert sentence(content()) == "It is not recorded what was done."
    assert sentence(content(recipe=RECIPE)) == "lora with raft on model demo."
    record = {"data": {"train": 1200}, "metrics": {"steps": 1}, "device": "cpu", "precision": "fp32"}
    curves = {"reward_mean": Curve([(1, 0.5), (2, 0.5)], "iteration")}
    assert sentence(content(recipe=f"{RECIPE}data:\n  name: auto\n", record=record, curves=curves)) == (
        "lora with raft on model demo, trained on 1,200 records of auto, 1 optimizer step in 2 iterations, on cpu in fp32."
    )


def test_without_a_figure_the_curve_tells_the_steps():
    curves = {"loss": Curve([(1, 2.0), (7, 1.0)], "step")}
    assert "7 optimizer steps" in sentence(content(recipe=RECIPE, curves=curves))


def test_tiles_show_what_became_better_or_worse():
    metrics = {
        "heldout_accuracy_before": 0.5,
        "heldout_accuracy_after": 0.75,
        "eval_loss_before": 1.0,
        "eval_loss_after": 1.5,
        "eval_margin_before": 2.0,
        "eval_margin_after": 3.0,
        "trainable_parameters": 25,
        "parameters": 100,
    }
    accuracy, loss, margin, parameters = tiles(content(record={"metrics": metrics}))
    assert "50.0% → 75.0%" in accuracy
    assert '<em class="good">+25.0 points</em>' in accuracy
    assert '<em class="bad">' in loss, "a loss is better when it is lower"
    assert "eval margin" in margin
    assert '<em class="">' in margin, "whether a metric of a plugin should rise is not known"
    assert "25% of all" in parameters


def test_tiles_of_time_memory_and_speed():
    record = {"wall_seconds": 90, "peak_memory_bytes": 2_000_000_000, "metrics": {"tokens_per_second": 1234.5}}
    wall, memory, speed = tiles(content(record=record))
    assert "1 min 30 s" in wall or "90 s" in wall
    assert "2.0 GB" in memory or "2 GB" in memory
    assert "1,234 tokens/s" in speed
    assert "in all" not in speed


def test_rewards_and_losses_have_their_charts(run: Path):
    found = read_content(run)
    text = rewards(found)
    for title in ("Mean reward", "Share of samples by reward"):
        assert f"<figcaption>{title}</figcaption>" in text
    assert "Held-out accuracy" not in text, "this run has no such curve"
    text = losses(found)
    for title in ("Loss, nats per trained token", "Learning rate", "Gradient norm, unclipped"):
        assert f"<figcaption>{title}</figcaption>" in text
    assert "Speed, tokens per second" not in text


def test_what_one_prompt_drew_is_listed():
    row = {
        "prompt": "Sort <2 1>",
        "completion": "1 2",
        "reward": 1.0,
        "kept": True,
        "finish_reason": "eos",
        "tokens": 4,
    }
    samples = {3: [row] * 12 + [{**row, "prompt": "another"}]}
    text = sampled(content(samples=samples))
    assert "Sampled in iteration 3: Sort &lt;2 1&gt;" in text
    assert text.count("<td>kept</td>") == 8
    assert "by itself, 4 tokens" in text
    assert "another" not in text


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"finish_reason": "eos", "tokens": 1200}, "by itself, 1,200 tokens"),
        ({"finish_reason": "length"}, "cut"),
        ({"finish_reason": "stop", "tokens": None}, "stop string"),
        ({"finish_reason": 3, "tokens": "many"}, ""),
    ],
)
def test_how_a_sample_ended(row: dict[str, Any], expected: str):
    assert ending(row) == expected


def test_a_reward_that_is_none_is_a_dash():
    assert reward_text({"reward": 0.5}) == "0.5"
    assert reward_text({"reward": None}) == reward_text({}) == "–"  # noqa: RUF001


def test_the_time_that_no_phase_took_is_named():
    record = {"wall_seconds": 10.0, "seconds": {"training": 6.0, "sampling": 2.0, "odd": "x"}}
    text = costs(content(record=record))
    rows = [part.partition("<")[0] for part in text.split('<th scope="row">')[1:]]
    assert rows == ["training", "sampling", "everything else"], "the longest first"
    assert "<td>60%</td>" in text
    assert "everything else" not in costs(content(record={**record, "wall_seconds": 8.05}))


def test_the_data_section_has_figures_and_notes():
    record = {
        "data": {"path": None, "train": 512},
        "lengths": {"longest": 90},
        "metrics": {"trained_token_share": 0.25},
        "notes": ["<3> were cut"],
    }
    text = data(content(record=record))
    assert '<th scope="row">path</th><td>embedded</td>' in text
    assert '<th scope="row">train</th><td>512</td>' in text
    assert '<th scope="row">lengths: longest</th><td>90</td>' in text
    assert "25.0%" in text
    assert "<li>&lt;3&gt; were cut</li>" in text


def test_details_fold_what_few_read():
    record = {"seed": 3, "metrics": {"steps": 12}, "versions": {"torch": "2.15"}, "plugins": {"lmflow-lora": "0.1"}}
    text = details(content(recipe=RECIPE, record=record))
    assert "<span>tuner <b>lora</b></span>" in text
    for title in ("The whole recipe", "All figures", "Versions"):
        assert f"<summary>{title}</summary>" in text
    assert text.index("seed") < text.index("steps")
    assert "lmflow-lora" in text
    bare = details(content())
    assert "<details>" not in bare


def test_small_charts_begin_at_zero_and_show_shares_as_percentages():
    curves = {
        "stopped_share": Curve([(1, 0.5), (2, 0.75)], "iteration"),
        "kl": Curve([(1, 5.0), (2, 6.0)], "iteration"),
    }
    wanted = (("Share", {"share": "stopped_share"}), ("KL", {"KL": "kl"}), ("None", {"none": "missing"}))
    text = small_charts(content(curves=curves), "iteration", *wanted)
    assert text.count("<figure>") == 2
    assert "50% → 75%" in text
    assert ">0</text>" in text


def test_curves_of_plugins_are_drawn_at_the_end():
    curves = {"margin<": Curve([(1, 1.0), (2, 2.0)], "step"), "loss": Curve([(1, 1.0), (2, 2.0)], "step")}
    text = others(content(curves=curves))
    assert text.count("<figure>") == 1
    assert "margin&lt;" in text


@pytest.mark.parametrize(
    ("value", "expected"), [(1200, "1,200"), (0.5, "0.5"), ("text", "text"), (None, "None"), (True, "True")]
)
def test_recorded_values_as_text(value: Any, expected: str):
    assert shown(value) == expected
