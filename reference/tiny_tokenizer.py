"""A small tokenizer in the official file layout, for the embedded checkpoint.

Byte-level BPE trained on the sentences below with plain counting, so that the files are the same on every machine. Like
the official merges, it never joins a Chinese character with its neighbours.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

from port.frontend.special_tokens import BASE_SPECIAL_TOKENS, END_OF_TEXT
from port.frontend.tokenizer import MODEL_MAX_LENGTH, pre_tokenizer

MIN_VOCAB_SIZE = 256  # one token a byte

CORPUS = """
You are a helpful assistant. Please say this sentence slowly, in a quiet and friendly voice.
The morning train leaves at seven thirty, and the next one is already late again.
She opened the window because the kitchen was warm, and the smell of fresh bread filled the street.
How many people are coming to the concert on Saturday evening? I think there will be about forty of them!
When the rain stopped, the children ran outside to look for their yellow boats in the river.
It is not the answer that matters here; it is the question, and whether anybody wants to ask it.
今天早上的天气真不错，我们一起去公园走走吧。
你好，请问去火车站应该怎么走？前面第二个路口向左转就到了。
她把刚做好的晚饭放在桌子上，然后打电话叫孩子们回家。
这本书我已经看了三遍，每一次都有新的想法。
希望明天不要下雨，因为大家都想去爬山。
如果你有时间，我们可以在下午四点见面，一起喝杯咖啡。
"""


def build_tiny_tokenizer(folder: str | Path, vocab_size: int = 320) -> None:
    """Write vocab.json, merges.txt and tokenizer_config.json, as in CosyVoice-BlankEN, into `folder`.

    Args:
        folder: made if missing; files of these names in it are replaced.
        vocab_size: tokens before the special ones. The special tokens take the next 281 ids, so the embedding needs
            `vocab_size + 281` rows.

    Raises:
        ValueError: `vocab_size` below 256 or above what the corpus yields.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size {vocab_size} is below {MIN_VOCAB_SIZE}, the number of bytes")
    merges = train_merges(CORPUS, vocab_size - MIN_VOCAB_SIZE)
    tokens = list(byte_symbols().values()) + [left + right for left, right in merges]
    if len(tokens) != vocab_size:
        raise ValueError(f"vocab_size {vocab_size} is above {len(tokens)}, the most that the built-in corpus yields")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(vocab_size + i): {"content": token, **flags} for i, token in enumerate(BASE_SPECIAL_TOKENS)
        },
        "additional_special_tokens": list(BASE_SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": BASE_SPECIAL_TOKENS[2],
        "errors": "replace",
        "model_max_length": MODEL_MAX_LENGTH,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(
        json.dumps(vocab, ensure_ascii=False, separators=(",", ":")), encoding="utf-8", newline="\n"
    )
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    (folder / "merges.txt").write_text(lines, encoding="utf-8", newline="\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")


def byte_symbols() -> dict[int, str]:
    """GPT-2's byte alphabet in the id order of the official vocab.json: printable bytes first, as themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def train_merges(corpus: str, count: int) -> list[tuple[str, str]]:
    """The first `count` merges of BPE on `corpus`, fewer when nothing is left to join; ties go to the smaller pair."""
    words = Counter(word for line in corpus.splitlines() for word, _ in pre_tokenizer().pre_tokenize_str(line))
    split = {word: list(word) for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        ranked = sorted((-number, pair) for pair, number in pairs.items())
        best = next((pair for _, pair in ranked if not _joins_chinese(pair[0] + pair[1])), None)
        if best is None:
            break
        merges.append(best)
        split = {word: _merge(parts, best) for word, parts in split.items()}
    return merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


_BYTES = {symbol: byte for byte, symbol in byte_symbols().items()}


@cache
def _joins_chinese(token: str) -> bool:
    text = bytes(_BYTES[symbol] for symbol in token).decode("utf-8", "ignore")
    # A token with part of a neighbour's character has more bytes than its decoded text.
    whole = len(text.encode()) == len(token)
    return any("\u4e00" <= character <= "\u9fff" for character in text) and (len(text) > 1 or not whole)
