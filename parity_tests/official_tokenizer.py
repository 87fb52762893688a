"""Find or rebuild the official vocab.json and merges.txt for tests.

They come from the folder COSYVOICE3_TOKENIZER or ../shared/official/CosyVoice-BlankEN; otherwise they are rebuilt byte
for byte from the PyPI package dashscope, installed or as the wheel COSYVOICE3_DASHSCOPE_WHEEL.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import zipfile
from itertools import pairwise
from pathlib import Path

from reference.tiny_tokenizer import byte_symbols

VOCAB_SHA1 = "4783fe10ac3adce15ac8f358ef5462739852c569"  # git blob ids of the official files
MERGES_SHA1 = "90d3d82d027eadcc6a5e77c38eb82d43fc51b53b"
RANKS_FILE = "resources/qwen.tiktoken"
REASON = (
    "the official tokenizer files are not here: set COSYVOICE3_TOKENIZER to a folder with vocab.json and merges.txt, "
    "or COSYVOICE3_DASHSCOPE_WHEEL to a dashscope wheel"
)


def official_tokenizer(folder: Path, stock: bool = False) -> Path | None:
    """A folder with the official vocab.json and merges.txt, rebuilt into `folder` if need be; None if unavailable.

    Args:
        folder: where to write rebuilt files.
        stock: write the merges of stock Qwen2 instead (only from dashscope).
    """
    shared = Path(__file__).parents[2] / "shared/official/CosyVoice-BlankEN"
    for found in (Path(os.environ.get("COSYVOICE3_TOKENIZER", shared)), shared):
        if not stock and (found / "vocab.json").is_file() and (found / "merges.txt").is_file():
            return found
    if (text := _dashscope_ranks()) is None:
        return None
    lines = [line.split() for line in text.splitlines() if line.strip()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    write_from_ranks(ranks, folder, stock)
    return folder


def write_from_ranks(ranks: dict[bytes, int], folder: Path, stock: bool = False) -> None:
    """vocab.json and merges.txt from tiktoken's ranks.

    A token's merge is the pair that remains after all merges of better rank. The official list omits merges that make
    runs of Chinese characters.

    Raises:
        ValueError: the files are not the official ones, byte for byte.
    """
    symbols = byte_symbols()

    def written(token: bytes) -> str:
        return "".join(symbols[byte] for byte in token)

    tokens = sorted(ranks, key=ranks.__getitem__)
    vocab = json.dumps({written(t): ranks[t] for t in tokens}, ensure_ascii=False, separators=(",", ":")).encode()
    pairs = (last_pair(t, ranks) for t in tokens if len(t) > 1 and (stock or not _is_chinese_run(t)))
    merges = "".join(f"{written(left)} {written(right)}\n" for left, right in pairs).encode()
    if _blob_sha1(vocab) != VOCAB_SHA1 or (not stock and _blob_sha1(merges) != MERGES_SHA1):
        raise ValueError("the rebuilt tokenizer files are not the official ones")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_bytes(vocab)
    (folder / "merges.txt").write_bytes(merges)


def last_pair(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts whose merge makes `token`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        i = joined.index(min(joined))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def _is_chinese_run(token: bytes) -> bool:
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return False
    rest = text.replace(" ", "")
    return len(text) > 1 and rest != "" and all("\u4e00" <= character <= "\u9fff" for character in rest)


def _dashscope_ranks() -> bytes | None:
    if wheel := os.environ.get("COSYVOICE3_DASHSCOPE_WHEEL"):
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(f"dashscope/{RANKS_FILE}")
    if (spec := importlib.util.find_spec("dashscope")) and spec.origin:
        path = Path(spec.origin).parent / RANKS_FILE
        return path.read_bytes() if path.is_file() else None
    return None


def _blob_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
