# ruff: noqa: RUF001 - DeepSeek's bars are wide
"""What lmflow trains of sixteen kinds of dialogue with each chat template of a folder, and whether that is right.

    python benchmarks/templates.py DIR [--verbose] [--json]

DIR and the folders in it hold templates: *.jinja, and *.json with a `chat_template`, such as tokenizer_config.json.
Each is used with the demo model's tokenizer, to which the special tokens that it mentions are added.

A dialogue is trained, refused, or wrong: part of an answer is not trained, or more than the answers is; an end is
trained twice or never; or the prompt is not the template's, or not what the trained text begins with. What is wrong is
found from the template and the dialogue alone (template_checks.py). Of what is refused, "sound" are dialogues that the
template writes in full. The exit status is 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from template_checks import Outcome, assess, count
from template_records import RECORDS, samples

SPECIAL = re.compile(
    r"<\|[^|<>{}\s]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<｜[^｜{}\s]+｜>|\[\|[^|\]\s]+\|\]|\[/?[A-Z]{3,}[A-Z_]*\]|"
    r"<(?:start|end)_of_\w+>|<extra_id_\d+>|<reserved_\d+>|</?seed:\w+>|\[gMASK\]|<sop>|</?s>|<(?:bos|eos|pad|sep)>"
)
"""What is written like a special token."""
BEGINS = ("<|begin_of_text|>", "<bos>", "<|startoftext|>", "<｜begin▁of▁sentence｜>", "<BOS_TOKEN>", "<seed:bos>")
ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|eot|>", "<|end|>", "<end_of_turn>", "<turn|>", "<end_of_utterance>"),
    *("<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "<|endofturn|>", "[|endofturn|]", "<seed:eos>"),
    *("<|end_of_text|>", "<|endoftext|>", "<|role_end|>", "<|message_sep|>", "</s>"),
)
SHORT = {"trained": "+", "refused": "-", "sound": "s", "wrong": "X"}


@dataclass(frozen=True)
class Template:
    """A chat template (or several by name), and the special tokens that its file names."""

    name: str
    text: str | Mapping[str, str]
    special: tuple[str, ...] = ()
    bos: str | None = None
    eos: str | None = None

    @property
    def whole(self) -> str:
        """All of its text."""
        return self.text if isinstance(self.text, str) else "\n".join(self.text.values())


# Reading


def read(folder: Path) -> Iterator[Template]:
    """The templates below the folder, each once."""
    seen: set[str] = set()
    for path in sorted(each for each in folder.rglob("*") if each.suffix in (".jinja", ".jinja2", ".json")):
        found = read_file(path, str(path.relative_to(folder)))
        if found is not None and found.whole.strip() not in seen:
            seen.add(found.whole.strip())
            yield found


def read_file(path: Path, name: str) -> Template | None:
    """The template of a file; None for a JSON file without one."""
    try:
        content = path.read_text(encoding="utf-8")
        config = json.loads(content) if path.suffix == ".json" else {"chat_template": content}
    except ValueError as error:
        raise SystemExit(f"{path} is not UTF-8 or not JSON ({error}); mend the file or move it away") from error
    own = config.get("chat_template") if isinstance(config, dict) else None
    if not own:
        return None
    text = {each["name"]: each["template"] for each in own} if isinstance(own, list) else own
    added = [each for each in config.get("added_tokens_decoder", {}).values() if each.get("special")]
    special = tuple(each["content"] for each in added)
    return Template(name, text, special, _token(config.get("bos_token")), _token(config.get("eos_token")))


def _token(given: Any) -> str | None:
    return given["content"] if isinstance(given, dict) else given


def tokenizer_for(demo: Any, template: Template) -> Any:
    """The demo model's tokenizer with the template and its special tokens."""
    made = copy.deepcopy(demo)
    text = template.whole
    named = dict.fromkeys([*template.special, *SPECIAL.findall(text), *_of_roles(text)])
    bos = template.bos or next((each for each in BEGINS if each in text), "<s>")
    made.add_special_tokens({"bos_token": bos, "eos_token": template.eos or _end(text)})
    made.add_special_tokens({"extra_special_tokens": list(named)}, replace_extra_special_tokens=False)
    made.chat_template = template.text
    return made


def _end(text: str) -> str:
    """The end-of-text token of a template that is a file of its own: none that it writes beside `eos_token`."""
    named = next((each for each in ENDS if each in text), None)
    if named is None:
        return "</s>"
    return "<|endoftext|>" if "eos_token" in text and named != "<|endoftext|>" else named


def _of_roles(text: str) -> list[str]:
    """The tokens that a template puts together from marks and the name of a role."""
    roles = ("system", "user", "assistant", "tool", "observation")
    return [f"<|{role}|>" for role in roles] if re.search(r"""<\|(['"]|{{)""", text) else []


# Reporting


def table(found: Mapping[str, Mapping[str, Outcome]]) -> str:
    """A row for each template, a sign for each record."""
    width = max(map(len, found))
    lines = [f"{number:2} {name}" for number, name in enumerate(RECORDS, 1)]
    lines += ["", " " * width + "".join(f" {number:2}" for number in range(1, len(RECORDS) + 1))]
    for name, outcomes in found.items():
        signs = [SHORT["sound" if each.sound else each.status] for each in outcomes.values()]
        lines.append(f"{name:{width}}" + "".join(f"  {sign}" for sign in signs))
    totals = [count([row[record] for row in found.values()]) for record in RECORDS]
    lines += ["", *(_total_row(status, totals, width) for status in ("trained", "refused", "sound", "wrong"))]
    return "\n".join([*lines, "", summary(found)])


def _total_row(status: str, totals: Sequence[Counter[str]], width: int) -> str:
    return f"{status + ' ' + SHORT[status]:>{width}}" + "".join(f" {each[status]:2}" for each in totals)


def summary(found: Mapping[str, Mapping[str, Outcome]]) -> str:
    """The totals in words."""
    total = count([each for row in found.values() for each in row.values()])
    return (
        f"{len(found)} templates, {len(RECORDS)} dialogues: {total['trained']} trained, {total['refused']} refused "
        f"({total['sound']} of them though the template writes all of it), {total['wrong']} wrong"
    )


def reasons(found: Mapping[str, Mapping[str, Outcome]], *statuses: str) -> Iterator[str]:
    """A line for each outcome of these kinds."""
    for name, outcomes in found.items():
        for record, each in outcomes.items():
            if each.status in statuses:
                sound = " though sound" if each.sound else ""
                yield f"{each.status}{sound}: {name}: {record}: {each.reason}"


def main() -> int:
    """Try every template, and print what became of each dialogue."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--verbose", action="store_true", help="the reason of every refusal too")
    parser.add_argument("--json", action="store_true", help="every outcome with its reason, for a machine")
    given = parser.parse_args()
    found = try_all(given.folder)
    if not found:
        raise SystemExit(f"{given.folder}: no *.jinja file, and no *.json file with a chat_template")
    if given.json:
        print(json.dumps({name: {k: asdict(v) for k, v in row.items()} for name, row in found.items()}, indent=1))
    else:
        print(table(found), *reasons(found, "wrong", *(["refused"] if given.verbose else [])), sep="\n")
    return int(any(each.status == "wrong" for row in found.values() for each in row.values()))


def try_all(folder: Path) -> dict[str, dict[str, Outcome]]:
    """What became of each dialogue, by template."""
    from transformers import AutoTokenizer

    from lmflow.data.tokenize import encode_prompt, encode_samples

    with as_file(files("lmflow_demo") / "model") as directory:
        demo = AutoTokenizer.from_pretrained(directory)
    found = {}
    for template in read(folder):
        tokenizer = tokenizer_for(demo, template)
        found[template.name] = {
            name: assess(tokenizer, sample, encode_samples, encode_prompt) for name, sample in samples()
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
