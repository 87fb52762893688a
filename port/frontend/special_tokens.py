"""The special tokens of CosyVoice 3, in the order that gives them their ids.

Source: `CosyVoice3Tokenizer` in cosyvoice/tokenizer/tokenizer.py. Ids count on from the size of the byte-level BPE
vocabulary, so that <|endofprompt|> is 151646 in the official checkpoint and something small in a test checkpoint.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from difflib import SequenceMatcher

END_OF_TEXT = "<|endoftext|>"  # also the padding token
END_OF_PROMPT = "<|endofprompt|>"  # ends the instruction; the language model refuses input without it
PREAMBLE = "You are a helpful assistant."  # stands before every instruction in the original's examples (example.py)

# Already in CosyVoice-BlankEN/tokenizer_config.json.
BASE_SPECIAL_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")

_EVENTS = """
    <|endofprompt|> [breath] <strong> </strong> [noise] [laughter] [cough] [clucking] [accent] [quick_breath]
    <laughter> </laughter> [hissing] [sigh] [vocalized-noise] [lipsmack] [mn] <|endofsystem|>
"""

# CMU phonemes with their stress digits.
_PHONEMES = """
    AA AA0 AA1 AA2 AE AE0 AE1 AE2 AH AH0 AH1 AH2 AO AO0 AO1 AO2 AW AW0 AW1 AW2 AY AY0 AY1 AY2 B CH D DH EH EH0 EH1
    EH2 ER ER0 ER1 ER2 EY EY0 EY1 EY2 F G HH IH IH0 IH1 IH2 IY IY0 IY1 IY2 JH K L M N NG OW OW0 OW1 OW2 OY OY0 OY1
    OY2 P R S SH T TH UH UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH
"""

# Pinyin: initials bare, finals with their tone mark (all NFC).
_PINYIN = """
    a ai an ang ao b c ch d e ei en eng f g h i ian in ing iu ià iàn iàng iào iá ián iáng iáo iè ié iòng ióng iù
    iú iā iān iāng iāo iē iě iōng iū iǎ iǎn iǎng iǎo iǒng iǔ j k l m n o ong ou p q r s sh t u uang ue un uo uà
    uài uàn uàng uá uái uán uáng uè ué uì uí uò uó uā uāi uān uāng uē uě uī uō uǎ uǎi uǎn uǎng uǐ uǒ vè w x y z zh
    à ài àn àng ào á ái án áng áo è èi èn èng èr é éi én éng ér ì ìn ìng í ín íng ò òng òu ó óng óu ù ùn ú ún ā āi
    ān āng āo ē ēi ēn ēng ě ěi ěn ěng ěr ī īn īng ō ōng ōu ū ūn ǎ ǎi ǎn ǎng ǎo ǐ ǐn ǐng ǒ ǒng ǒu ǔ ǔn ǘ ǚ ǜ
"""

# What the original passes as additional_special_tokens (280; the first two exist already).
ADDITIONAL_SPECIAL_TOKENS = (
    *BASE_SPECIAL_TOKENS[1:],
    *_EVENTS.split(),
    *(f"[{name}]" for name in (*_PHONEMES.split(), *_PINYIN.split())),
)

# All of them in id order: 3 of the base and 278 new ones.
SPECIAL_TOKENS = tuple(dict.fromkeys(BASE_SPECIAL_TOKENS + ADDITIONAL_SPECIAL_TOKENS))

TOKEN = re.compile("(" + "|".join(map(re.escape, sorted(SPECIAL_TOKENS, key=len, reverse=True))) + ")")
_BRACKETS = str.maketrans("［］【】〔〕＜＞", "[][][]<>")
_BRACKETED = re.compile(r"\[[^\[\]\n]{1,30}\]|<[^<>\n]{1,30}>")
_NAME = re.compile(r"/?[^\W\d_][\w -]*/?")
MOST_MISTAKEN = 16  # words in brackets that are looked at in a text


def outside_tokens(change: Callable[[str], str], text: str) -> str:
    """Apply `change` to all of `text` but the special tokens in it."""
    parts = TOKEN.split(text)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts) if part)


def has_instruction(*texts: object) -> bool:
    """Whether one of the texts has one; what still arrives has none."""
    return any(isinstance(text, str) and END_OF_PROMPT in text for text in texts)


def with_preamble(text: str, after: object = "") -> str:
    """A transcript or a text behind the model's preamble, unless it or what comes after has an instruction."""
    return text if has_instruction(text, after) else PREAMBLE + END_OF_PROMPT + text


def as_instruction(text: str, after: object = "") -> str:
    """An instruction as the model learnt it, behind the preamble and closed, unless it or what comes after has one."""
    said = text.strip().removeprefix(PREAMBLE).strip()
    return text if has_instruction(text, after) else f"{PREAMBLE} {said}".strip() + END_OF_PROMPT


def require_end_of_prompt(text: str) -> None:
    """Refuse a request whose prompt text and text hold no instruction.

    Raises:
        ValueError: no `<|endofprompt|>`.
    """
    if END_OF_PROMPT not in text:
        raise ValueError(
            f"no {END_OF_PROMPT} in the prompt text or the text; CosyVoice 3 needs an instruction that ends with it, "
            f"such as 'You are a helpful assistant.{END_OF_PROMPT}'"
        )


def mistaken_tokens(text: str) -> dict[str, str]:
    """What looks like a special token and is none ("[Laughter]", "【laughter】"), each with the nearest real one.

    A word of Latin letters in brackets does; a number does not, nor do several words unless they are nearly a token.
    """
    inside: dict[str, str] = {}
    outside = TOKEN.split(text)[::2]
    for part, match in ((p, match) for p in outside for match in _BRACKETED.finditer(p.translate(_BRACKETS))):
        if _NAME.fullmatch(name := _plain_name(match[0])) and _is_latin(name):
            inside[part[match.start() : match.end()]] = name
        if len(inside) >= MOST_MISTAKEN:
            break
    near = {found: _nearest(name, found[0]) for found, name in inside.items()}
    return {found: token for found, (token, alike) in near.items() if alike > 0.6 or " " not in inside[found]}


def _plain_name(token: str) -> str:
    return unicodedata.normalize("NFKC", token).strip("[]<>|【】〔〕 ").casefold()


def _is_latin(name: str) -> bool:
    return "".join(c for c in unicodedata.normalize("NFD", name) if not unicodedata.combining(c)).isascii()


def _nearest(name: str, bracket: str) -> tuple[str, float]:
    def likeness(token: str) -> tuple[float, bool]:
        return SequenceMatcher(None, name, _plain_name(token)).ratio(), token[0] == bracket.translate(_BRACKETS)

    token = max(SPECIAL_TOKENS, key=likeness)
    return token, likeness(token)[0]
