"""The record formats of the core: what the fields of a record mean."""

from lmflow.components import DataFormat
from lmflow.data.formats.completions import Completions
from lmflow.data.formats.dialogues import Alpaca, Conversation, Messages, Prompts, ShareGpt
from lmflow.data.formats.fields import ROLES, bad, text_of, tools_of, turns_of, with_system
from lmflow.data.formats.plain import FloatOnly, TextOnly, TextToScoredTextList, TextToText, TextToTextList
from lmflow.data.formats.preferences import HhRlhf, Kto, PairedConversation, PairedTextToText, Preference
from lmflow.data.formats.recognising import Formats, formats_of

FORMATS: tuple[type[DataFormat], ...] = (
    TextOnly,
    TextToText,
    TextToTextList,
    TextToScoredTextList,
    FloatOnly,
    Conversation,
    PairedConversation,
    PairedTextToText,
    Messages,
    ShareGpt,
    Alpaca,
    Prompts,
    Preference,
    Kto,
    HhRlhf,
    Completions,
)

__all__ = [
    "FORMATS",
    "ROLES",
    "Alpaca",
    "Completions",
    "Conversation",
    "FloatOnly",
    "Formats",
    "HhRlhf",
    "Kto",
    "Messages",
    "PairedConversation",
    "PairedTextToText",
    "Preference",
    "Prompts",
    "ShareGpt",
    "TextOnly",
    "TextToScoredTextList",
    "TextToText",
    "TextToTextList",
    "bad",
    "formats_of",
    "text_of",
    "tools_of",
    "turns_of",
    "with_system",
]
