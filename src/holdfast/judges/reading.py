"""What of a response is its answer, and the answer in the form that rules match: sentences in lower case."""

from __future__ import annotations

import re

SCANNED = 20_000  # characters: whatever refuses does so earlier, and a runaway response must not take seconds
LONGEST = 1_000  # characters of a sentence, for patterns that span one
CODE = "[code]"  # stands where a block of code stood

REASONING = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
REASONED = re.compile(r"</(?:think|thinking|reasoning)>", re.IGNORECASE)  # templates may hold the opening tag

FENCED = re.compile(r"\A```(?:text|markdown)?\n([^`]*)```\Z")
BLOCK = re.compile(r"```.*?(?:```|\Z)|\A#!.*", re.DOTALL)
INLINE = re.compile(r"`[^`\n]{1,200}`")
APOSTROPHE = re.compile(r"(?<=\w)[’‘ʼ′`´](?=\w)")
# Spelled out before anything is matched, so that the patterns need not know of contractions.
CONTRACTIONS = tuple(
    (re.compile(pattern), spelled)
    for pattern, spelled in (
        (r"\bcan't\b|\bcan not\b|\bcant\b", "cannot"),
        (r"\bwon't\b|\bwont\b", "will not"),
        (r"n't\b", " not"),
        (r"\b(do|does|is|are|would|could|should)nt\b", r"\1 not"),
        (r"\bi'm\b|\bim (?=sorry|not|unable|afraid)", "i am "),
        (r"\b(it|that|there|what|here)'s\b", r"\1 is"),
        (r"'re\b", " are"),
        (r"'ve\b", " have"),
        (r"'ll\b", " will"),
        (r"'d\b", " would"),
    )
)
QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "„": "“", "「": "」", "『": "』"}
# Quoted words are somebody else's. Bounded, for an opening mark may stand alone.
QUOTED = re.compile(
    r"\"[^\"\n]{0,600}\"|“[^”\n]{0,600}”|«[^»\n]{0,600}»|„[^“”\n]{0,600}[“”]|「[^」\n]{0,600}」|『[^』\n]{0,600}』"
    r"|(?<!\w)'[^'\n]{0,300}'(?!\w)|‘[^’\n]{0,300}’"
)
MARKUP = re.compile(r"</?[a-z][^<>\n]{0,40}>|[*_~#>|]+")
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|(?<=[。！？])|\n+")
# Bullets, emoji, and the name of the speaker.
BEFORE = re.compile(
    r"^(?:[^\w\[]|\d+[.):](?!\d)|(?:ai|assistant|ai assistant|bot|answer|response|reply|warning)\s*:)+"
)
LETTER = re.compile(r"[^\W\d_]")
WORD = re.compile(r"[\u3040-\u9fff]{1,2}|[^\s\u3040-\u9fff]+")  # Chinese and Japanese have no spaces


def answer(response: str) -> str:
    """Without reasoning. A block of it that is never closed takes all that follows."""
    return REASONED.split(REASONING.sub("", response))[-1].strip()


def sentences(text: str) -> list[str]:
    """In lower case and without contractions, markup, code and quotations; a line break ends a sentence too."""
    text = APOSTROPHE.sub("'", text[:SCANNED].lower())
    text = INLINE.sub("", BLOCK.sub(f"\n{CODE}\n", _unwrapped(text)))
    for pattern, spelled in CONTRACTIONS:
        text = pattern.sub(spelled, text)
    text = MARKUP.sub("", QUOTED.sub("", text))
    found = (BEFORE.sub("", one.strip())[:LONGEST] for one in SENTENCE_END.split(text))
    return [" ".join(one.split()) for one in found if LETTER.search(one)]


def words(text: str) -> int:
    return len(WORD.findall(text))


def _unwrapped(text: str) -> str:
    """Without the fence or the quotation marks around all of it: then the words are the speaker's own."""
    if fenced := FENCED.match(text):
        text = fenced[1].strip()
    closing = QUOTES.get(text[:1])
    inside = text[1:-1]
    whole = closing and text.endswith(closing) and text[0] not in inside and closing not in inside
    return inside if whole else text
