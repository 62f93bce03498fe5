"""The page: sections of HTML from a run's content. Everything a model wrote is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from lmflow.report.charts import line_chart, number, stacked_bars
from lmflow.report.content import Content


def render_page(content: Content) -> str:
    """The whole page."""
    style = (files("lmflow") / "report" / "style.css").read_text(encoding="utf-8")
    sections = (headline, rewards, losses, answers, forgetting, responses, costs, data, others, details)
    body = "\n".join(section(content) for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(content.name)} · lmflow run</title>\n<style>{style}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def headline(content: Content) -> str:
    """Status, what was done, and the figures that matter."""
    record = content.record
    status = str(record.get("status", "unknown"))
    error = f'<p class="error">{escape(str(record["error"]))}</p>' if record.get("error") else ""
    return (
        f'<header><p class="status {escape(status)}">{escape(status)}</p><h1>{escape(content.name)}</h1>'
        f"<p>{escape(summary_line(content))}</p>{error}</header>"
        f'<section class="tiles">{"".join(tiles(content))}</section>'
    )


def summary_line(content: Content) -> str:
    """The recipe in a sentence."""
    names = chosen_names(content.recipe)
    if not names:
        return "No recipe was written."
    parts = f"Tuner {names.get('tuner', '?')}, aligner {names.get('aligner', '?')}, on model {names.get('model', '?')}"
    records = content.record.get("data", {}).get("records")
    return f"{parts}, data {names.get('data', '?')}" + (f" ({records:,} records)." if records else ".")


def chosen_names(recipe: str) -> dict[str, str]:
    """Each section's component, from the recipe's text."""
    names, section = {}, ""
    for line in recipe.splitlines():
        if line and not line[0].isspace():
            section = line.partition(":")[0]
        elif line.strip().startswith("name:"):
            names[section] = line.partition(":")[2].strip()
    return names


def tiles(content: Content) -> list[str]:
    """Large figures."""
    made = []
    wanted = (
        ("held-out reward", "heldout_reward", 1, "", True),
        ("greedy accuracy", "heldout_accuracy", 100, " %", True),
        ("held-out loss", "eval_loss", 1, "", False),
    )
    for label, name, factor, unit, higher_is_better in wanted:
        pair = content.pair(name)
        if pair:
            before, after = (factor * value for value in pair)
            better = (after > before) == higher_is_better and after != before
            change = f'<em class="{"good" if better else "bad"}">{after - before:+.3g}{unit}</em>'
            made.append(tile(label, f"{before:.3g} → {after:.3g}{unit}", change))
    record, metrics = content.record, content.metrics
    if record.get("wall_seconds") is not None:
        made.append(tile("wall time", duration(record["wall_seconds"])))
    if record.get("peak_memory_bytes"):
        made.append(tile("peak memory", f"{record['peak_memory_bytes'] / 1e9:.2f} GB"))
    if metrics.get("tokens_per_second"):
        made.append(tile("training speed", f"{metrics['tokens_per_second']:,.0f}", "tokens/s"))
    if metrics.get("trainable_parameters"):
        share = metrics["trainable_parameters"] / metrics["parameters"]
        made.append(tile("trained parameters", f"{metrics['trainable_parameters']:,}", f"{share:.2%} of all"))
    return made


def tile(label: str, value: str, small: str = "") -> str:
    """One large figure with its name."""
    return f"<div><span>{escape(label)}</span><strong>{escape(value)}</strong><small>{small}</small></div>"


def rewards(content: Content) -> str:
    """Reward by iteration."""
    names = {"held-out prompts": "heldout_reward", "all samples": "reward_mean", "kept samples": "reward_kept_mean"}
    chart = line_chart("Mean reward", select(content, names), "iteration")
    kl = line_chart("KL from the start model (nats per completion)", select(content, {"KL": "kl"}), "iteration")
    return section("Reward", chart + kl)


def losses(content: Content) -> str:
    """Loss, learning rate and gradient norm by step."""
    charts = [
        line_chart("Loss (nats per trained token)", select(content, {"training": "loss", "held-out": "eval_loss"}), "step"),
        line_chart("Learning rate", select(content, {"learning rate": "learning_rate"}), "step"),
        line_chart("Gradient norm before clipping", select(content, {"norm": "grad_norm"}), "step"),
    ]
    return section("Training", "".join(charts))


def answers(content: Content) -> str:
    """The same held-out prompts before and after, greedy."""
    if not content.comparisons:
        return ""
    rows = "".join(comparison(row) for row in content.comparisons)
    count = content.comparison_count
    shown = f"The first {len(content.comparisons)} of {count}" if count > len(content.comparisons) else f"All {count}"
    note = f"<p>{shown} held-out prompts, answered greedily by the model before and after.</p>"
    return section("Before and after", f'{note}<div class="answers">{rows}</div>', plain=True)


def comparison(row: Mapping[str, Any]) -> str:
    """One prompt with its two answers."""
    expected = f'<p class="expected">expected: {escape(str(row["expected"]))}</p>' if row.get("expected") else ""
    return (
        f'<article><p class="prompt">{escape(str(row.get("prompt", "")))}</p>{expected}<div class="pair">'
        f"{one_answer('before', row, row.get('reward_before'))}{one_answer('after', row, row.get('reward_after'))}"
        "</div></article>"
    )


def one_answer(when: str, row: Mapping[str, Any], reward: float | None) -> str:
    """An answer with its reward; `changed` marks one that differs from the other."""
    badge = "" if reward is None else f'<b class="badge">{number(reward)}</b>'
    changed = " changed" if when == "after" and row.get("before") != row.get("after") else ""
    text = escape(str(row.get(when, ""))) or "<i>(nothing)</i>"
    return f'<div class="answer{changed}"><span>{when}{badge}</span><p>{text}</p></div>'


def forgetting(content: Content) -> str:
    """Loss on generic text before and after, in words."""
    pair = content.pair("generic_loss")
    if not pair:
        return ""
    before, after = pair
    change = math.exp(after - before) - 1
    verdict = "Little was forgotten" if abs(change) < 0.05 else "Something was forgotten" if change > 0 else "It improved"
    text = (
        f"On generic English that no run trains on, the loss went from {before:.3f} to {after:.3f} nats per token: "
        f"perplexity {math.exp(before):,.2f} to {math.exp(after):,.2f} ({change:+.1%}). {verdict}."
    )
    return section("What was forgotten", f"<p>{escape(text)}</p>", plain=True)


def responses(content: Content) -> str:
    """Length, endings and diversity of what was sampled."""
    charts = [
        line_chart("Response length (tokens)", select(content, {"mean": "response_length"}), "iteration"),
        line_chart("Share that ended by itself", select(content, {"share": "stopped_share"}), "iteration"),
        line_chart(
            "Diversity (distinct n-grams)",
            select(content, {"distinct-1": "distinct_1", "distinct-2": "distinct_2"}),
            "iteration",
        ),
    ]
    return section("Responses", "".join(charts))


def costs(content: Content) -> str:
    """Where the time went."""
    names = {"sampling": "seconds_sampling", "scoring": "seconds_scoring", "training": "seconds_training"}
    chart = stacked_bars("Seconds per iteration", select(content, names), "iteration", "s")
    speed = line_chart("Training speed (tokens/s)", select(content, {"tokens/s": "tokens_per_second"}), "step")
    seconds: Mapping[str, float] = content.record.get("seconds", {})
    rows = [(name, f"{value:,.1f} s") for name, value in sorted(seconds.items(), key=lambda item: -item[1])]
    return section("Time", chart + speed + (table(rows) if rows else ""))


def data(content: Content) -> str:
    """What was read, and what became of it."""
    described: Mapping[str, Any] = content.record.get("data", {})
    rows = [(name, "embedded" if name == "path" and value is None else str(value)) for name, value in described.items()]
    lengths = content.record.get("notes", [])
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in lengths)
    return section("Data", (table(rows) if rows else "") + (f"<ul>{notes}</ul>" if notes else ""), plain=True)


def others(content: Content) -> str:
    """Curves that plugins added."""
    charts = [line_chart(name, {name: content.curves[name]}, "step") for name in content.other_curves]
    return section("Other metrics", "".join(charts))


def details(content: Content) -> str:
    """Recipe, versions, and how to repeat the run."""
    versions = {**content.record.get("versions", {}), **content.record.get("plugins", {})}
    recipe = f"<details><summary>Recipe</summary><pre>{escape(content.recipe)}</pre></details>" if content.recipe else ""
    packages = table(list(versions.items()))
    packages = f"<details><summary>Versions</summary>{packages}</details>" if versions else ""
    again = f"<p>Repeat it: <code>lmflow run {escape(content.name)}/recipe.yaml</code></p>"
    return section("Repeat", again + recipe + packages, plain=True)


def select(content: Content, names: Mapping[str, str]) -> dict[str, Sequence[tuple[float, float]]]:
    """Curves by the label they are shown under."""
    return {label: content.curves[name] for label, name in names.items() if name in content.curves}


def section(title: str, body: str, *, plain: bool = False) -> str:
    """A section of the page, empty if there is nothing in it."""
    kind = "plain" if plain else "charts"
    return f'<section><h2>{escape(title)}</h2><div class="{kind}">{body}</div></section>' if body else ""


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    cells = "".join(f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def duration(seconds: float) -> str:
    """Seconds in the two largest units."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.1f} s"
