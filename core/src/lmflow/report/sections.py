"""The sections of the page, each a function from a run's content to HTML, empty if there is nothing to say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lmflow.formatting import change, duration, number, size
from lmflow.report.answers import answers as compare_answers
from lmflow.report.answers import clip
from lmflow.report.charts import SMALL, bar_chart, line_chart
from lmflow.report.content import Content, Point, Row, finite, loss_curves, reward_shares
from lmflow.report.next_steps import next_commands

STATUS_TEXT = {
    "completed": "",
    "interrupted": "The run was stopped before its end; what it had finished is kept.",
    "failed": "The run ended with an error; what it had finished is kept.",
    "running": "The run had not ended when this page was written.",
    "unknown": "How the run ended is not recorded.",
}
SLOTS = ("tuner", "aligner", "model", "context", "data", "reward", "inferencer")
SHOWN_SAMPLES = 8


def headline(content: Content) -> str:
    """Status, what was done in a sentence, and the figures that matter."""
    status = content.status
    error = content.record.get("error")
    told = STATUS_TEXT.get(status, "")
    notice = f'<p class="notice">{escape(told)}</p>' if told else ""
    trouble = f'<pre class="error">{escape(clip(str(error)))}</pre>' if error else ""
    gaps = "".join(f'<p class="notice">{escape(gap)}</p>' for gap in content.gaps)
    kind = status if status in STATUS_TEXT else "unknown"
    return (
        f'<header><p class="status {kind}">{escape(status)}</p><h1>{escape(content.name)}</h1>'
        f'<p class="lead">{escape(sentence(content))}</p>{notice}{trouble}{gaps}</header>'
        f'<div class="tiles">{"".join(tiles(content))}</div>'
    )


def sentence(content: Content) -> str:
    """What was done to what, how long it took and on what."""
    names = content.components
    if not names:
        return "It is not recorded what was done."
    text = f"{names.get('tuner', '?')} with {names.get('aligner', '?')} on model {names.get('model', '?')}"
    records = finite(content.part("data").get("train"))
    if records is not None:
        text += f", trained on {records:,.0f} records"
    if "data" in names:
        text += f" of {names['data']}" if records is not None else f", data {names['data']}"
    steps = content.metric("steps") or max((x for x, _ in content.points("loss")), default=None)
    if steps:
        text += f", {steps:,.0f} optimizer step{'' if steps == 1 else 's'}"
    iterations = max((x for x, _ in content.points("reward_mean")), default=None)
    if iterations:
        text += f" in {iterations:,.0f} iteration{'' if iterations == 1 else 's'}"
    where = " in ".join(str(content.record[key]) for key in ("device", "precision") if content.record.get(key))
    return text + (f", on {where}." if where else ".")


def tiles(content: Content) -> list[str]:
    """Large figures."""
    made = []
    wanted = (
        ("held-out mean reward", "heldout_reward", 1, "", 1),
        ("greedy accuracy", "heldout_accuracy", 100, "%", 1),
        ("held-out loss", "eval_loss", 1, "", -1),
        *((name.replace("_", " "), name, 1, "", 0) for name in content.other_pairs),
    )
    for label, name, factor, unit, good_sign in wanted:
        pair = content.pair(name)
        if pair:
            before, after = (factor * value for value in pair)
            sign = (after > before) - (after < before)
            kind = "" if not (sign and good_sign) else "good" if sign == good_sign else "bad"
            digits, points = (1, " points") if unit else (3, "")
            text = f'<em class="{kind}">{change(before, after, digits)}{points}</em>'
            made.append(tile(label, f"{before:.{digits}f}{unit} → {after:.{digits}f}{unit}", text))
    wall, memory = finite(content.record.get("wall_seconds")), finite(content.record.get("peak_memory_bytes"))
    if wall is not None:
        made.append(tile("wall time", duration(wall)))
    if memory:
        made.append(tile("peak memory", size(memory)))
    speed, tokens = content.metric("tokens_per_second"), content.metric("tokens")
    if speed:
        made.append(tile("training speed", f"{speed:,.0f} tokens/s", f"{tokens:,.0f} tokens in all" if tokens else ""))
    moved, parameters = content.metric("trainable_parameters"), content.metric("parameters")
    if moved and parameters:
        made.append(tile("trained parameters", f"{moved:,.0f}", f"{100 * moved / parameters:.3g}% of all"))
    return made


def tile(label: str, value: str, small: str = "") -> str:
    """One large figure with its name; `small` is HTML."""
    return f"<div><span>{escape(label)}</span><strong>{escape(value)}</strong><small>{small}</small></div>"


def rewards(content: Content) -> str:
    """Reward by iteration, and how it is distributed in the first and the last."""
    names = {"held-out prompts": "heldout_reward", "all samples": "reward_mean", "kept samples": "reward_kept_mean"}
    labels, shares = reward_shares(content.samples)
    charts = [
        line_chart("Mean reward", select(content, names), "iteration"),
        bar_chart("Share of samples by reward", labels, shares, "reward", stacked=False, percent=True),
        line_chart("Held-out accuracy", select(content, {"accuracy": "heldout_accuracy"}), "iteration", percent=True),
    ]
    return section("Reward", "".join(charts), kind="charts")


def losses(content: Content) -> str:
    """Loss, learning rate and gradient norm by step."""
    small = small_charts(
        content,
        "step",
        ("Learning rate", {"rate": "learning_rate"}),
        ("Gradient norm, unclipped", {"norm": "grad_norm"}),
        ("Speed, tokens per second", {"speed": "tokens_per_second"}),
    )
    loss = line_chart("Loss, nats per trained token", loss_curves(content), "step")
    return section("Training", loss + small, kind="charts")


def answers(content: Content) -> str:
    """The same held-out prompts before and after."""
    return section("Before and after", compare_answers(content.comparisons))


def forgetting(content: Content) -> str:
    """Loss on generic text before and after, in words."""
    pair = content.pair("generic_loss")
    return section("What was forgotten", f"<p>{escape(forgotten(*pair))}</p>") if pair else ""


def forgotten(before: float, after: float) -> str:
    """What two losses on generic text, in nats per token, say about what was forgotten."""
    if max(before, after) > 300:
        losses = f"{number(before)} to {number(after)} nats per token"
        return f"On generic English the loss went from {losses}: the model is broken."
    share = math.expm1(after - before)
    if abs(share) < 0.02:
        verdict = "Practically nothing was forgotten"
    elif share < 0:
        verdict = "Nothing was forgotten; the model reads this text better than before"
    else:
        verdict = (
            "A little was forgotten" if share < 0.1 else "Much was forgotten" if share > 0.5 else "Some was forgotten"
        )
    return (
        f"{verdict}. On generic English that no run trains on, perplexity went from {number(math.exp(before))} to "
        f"{number(math.exp(after))} ({100 * share:+.1f}%): at each token the model is as unsure as if it chose among "
        f"that many. In nats per token the loss went from {before:.3f} to {after:.3f}."
    )


def responses(content: Content) -> str:
    """Length, endings, diversity and drift of what was sampled, and samples to look at."""
    charts = small_charts(
        content,
        "iteration",
        ("Response length, tokens", {"mean": "response_length"}),
        ("Share that ended by itself", {"share": "stopped_share"}),
        ("Diversity, share of distinct n-grams", {"distinct-1": "distinct_1", "distinct-2": "distinct_2"}),
        ("KL from start model, nats a response", {"KL": "kl"}),
    )
    return section("Responses", charts + sampled(content))


def sampled(content: Content) -> str:
    """What one prompt drew in the first and in the last iteration, and what was kept of it."""
    parts = []
    for iteration, rows in content.samples.items():
        prompt = rows[0].get("prompt")
        drawn = [row for row in rows if row.get("prompt") == prompt][:SHOWN_SAMPLES]
        cells = "".join(
            f"<tr><td>{reward_text(row)}</td><td>{'kept' if row.get('kept') else ''}</td>"
            f'<td class="text">{escape(clip(str(row.get("completion") or ""), 500))}</td>'
            f"<td>{escape(ending(row))}</td></tr>"
            for row in drawn
        )
        parts.append(
            f"<details><summary>Sampled in iteration {iteration}: {escape(clip(str(prompt or ''), 120))}</summary>"
            f'<div class="scroll"><table><thead><tr><th scope="col">reward</th><th scope="col">kept</th>'
            f'<th scope="col">completion</th><th scope="col">ended</th></tr></thead><tbody>{cells}</tbody>'
            "</table></div></details>"
        )
    return "".join(parts)


def reward_text(row: Row) -> str:
    """A sample's reward, a dash if it has none."""
    reward = finite(row.get("reward"))
    return "–" if reward is None else number(reward)  # noqa: RUF001


def ending(row: Row) -> str:
    """Why and after how many tokens a sample ended."""
    why = {"eos": "by itself", "stop": "stop string", "length": "cut"}.get(str(row.get("finish_reason")), "")
    tokens = finite(row.get("tokens"))
    return ", ".join(filter(None, [why, "" if tokens is None else f"{tokens:,.0f} tokens"]))


def costs(content: Content) -> str:
    """Where the time went."""
    names = {"sampling": "seconds_sampling", "scoring": "seconds_scoring", "training": "seconds_training"}
    curves = {label: dict(points) for label, points in select(content, names).items() if points}
    xs = sorted({x for values in curves.values() for x in values})
    series = {label: [values.get(x, 0.0) for x in xs] for label, values in curves.items()}
    chart = bar_chart("Seconds per iteration", [number(x) for x in xs], series, "iteration", stacked=True, unit="s")
    phases = {name: known for name, value in content.part("seconds").items() if (known := finite(value))}
    wall = finite(content.record.get("wall_seconds")) or 0.0
    rest = wall - sum(phases.values())
    if phases and rest > 0.01 * wall:
        phases["everything else"] = rest
    whole = sum(phases.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{duration(value)}</td><td class="share">'
        f'<i style="width:{100 * value / whole:.1f}%"></i></td><td>{100 * value / whole:.0f}%</td></tr>'
        for name, value in sorted(phases.items(), key=lambda item: -item[1])
    )
    shares = f'<figure><figcaption>By phase</figcaption><table class="bars"><tbody>{rows}</tbody></table></figure>'
    return section("Time", chart + (shares if rows else ""), kind="charts")


def data(content: Content) -> str:
    """What was read, and what became of it."""
    described = {**content.part("data"), **{f"lengths: {k}": v for k, v in content.part("lengths").items()}}
    share = content.metric("trained_token_share")
    if share is not None:
        described["tokens with a loss"] = f"{100 * share:.1f}%"
    rows = [
        (name, "embedded" if name == "path" and value is None else shown(value)) for name, value in described.items()
    ]
    notes = content.record.get("notes")
    lines = "".join(f"<li>{escape(str(note))}</li>" for note in notes) if isinstance(notes, list) else ""
    return section("Data", (table(rows) if rows else "") + (f"<ul>{lines}</ul>" if lines else ""))


def others(content: Content) -> str:
    """Curves that plugins added."""
    charts = [
        line_chart(name, {name: curve.points}, curve.unit, size=SMALL) for name, curve in content.other_curves.items()
    ]
    return section("Other metrics", small_multiples(charts))


def details(content: Content) -> str:
    """Recipe, all figures, versions, and what to do next."""
    steps = "".join(
        f"<li><code>{escape(each)}</code></li>" for each in next_commands(content.record, content.directory)
    )
    chosen = [f"{slot} <b>{escape(content.components[slot])}</b>" for slot in SLOTS if slot in content.components]
    chips = f'<p class="chips">{"".join(f"<span>{each}</span>" for each in chosen)}</p>' if chosen else ""
    recipe = f"<pre>{escape(content.recipe)}</pre>"
    versions = {**content.part("versions"), **content.part("plugins")}
    figures = [(name, shown(value)) for name, value in content.part("metrics").items()]
    when = [(key, shown(content.record[key])) for key in ("started", "finished", "seed") if key in content.record]
    body = chips + (folded("The whole recipe", recipe) if content.recipe else "")
    body += folded("All figures", table(when + figures)) if when + figures else ""
    body += folded("Versions", table([(name, shown(value)) for name, value in versions.items()])) if versions else ""
    return section("Next", f'<ul class="commands">{steps}</ul>') + section("Recipe and record", body)


def folded(title: str, body: str) -> str:
    """A part that opens with a click."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def select(content: Content, names: Mapping[str, str]) -> dict[str, Sequence[Point]]:
    """Curves by the label they are shown under."""
    return {label: content.points(name) for label, name in names.items() if content.points(name)}


def small_charts(content: Content, unit: str, *wanted: tuple[str, Mapping[str, str]]) -> str:
    """Small charts from 0, side by side, of what the run has among (title, metric by label); shares as percentages."""
    drawn = []
    for title, names in wanted:
        percent = all(name.endswith("_share") for name in names.values())
        curves = select(content, names)
        drawn.append(line_chart(title, curves, unit, size=SMALL, percent=percent, from_zero=True))
    return small_multiples(drawn)


def small_multiples(charts: Sequence[str]) -> str:
    """Small charts side by side."""
    body = "".join(charts)
    return f'<div class="charts small">{body}</div>' if body else ""


def section(title: str, body: str, *, kind: str = "plain") -> str:
    """A section of the page, empty if there is nothing in it."""
    return f'<section><h2>{escape(title)}</h2><div class="{kind}">{body}</div></section>' if body else ""


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    cells = "".join(f'<tr><th scope="row">{escape(str(n))}</th><td>{escape(v)}</td></tr>' for n, v in rows)
    return f"<table><tbody>{cells}</tbody></table>"


def shown(value: Any) -> str:
    """A recorded value as text."""
    known = finite(value)
    if known is not None:
        return number(known) if isinstance(value, float) else f"{value:,}"
    return clip(str(value), 500)
