"""Text tokenizer: Qwen2's byte-level BPE with the special tokens of CosyVoice 3, without transformers.

The official merges.txt is not Qwen's own: merges inside runs of Chinese characters are left out, so that every Chinese
character is one token. A stock Qwen tokenizer has the same vocabulary and would feed the language model wrong tokens
with no error; `check_probe` is there to notice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from ..files.disk import beside, read_json, read_regular
from ..files.errors import Refused
from .special_tokens import ADDITIONAL_SPECIAL_TOKENS, END_OF_PROMPT, END_OF_TEXT, SPECIAL_TOKENS

OFFICIAL_VOCAB_SIZE = 151643  # before the special tokens
PROBE_TEXT = "You are a helpful assistant.<|endofprompt|>希望你以后能够做的比我还好呦。"
# fmt: off
PROBE_IDS = (
    2610, 525, 264, 10950, 17847, 13, 151646, 99658, 99317, 56568, 23031, 33447, 26232, 99521, 99190, 9370, 56006,
    35946, 97706, 52801, 119024, 1773,
)
# fmt: on
MODEL_MAX_LENGTH = 32768

# The longest files in use are about 3 MB (vocab.json) and 8 MB (tokenizer.json).
MAX_JSON_BYTES = 64 << 20
MAX_MERGES_BYTES = 16 << 20
MAX_VOCAB_SIZE = 1 << 20

# Qwen2's pre-tokenizer (`PRETOKENIZE_REGEX` in transformers' tokenization_qwen2.py).
PRETOKENIZE_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())

logger = logging.getLogger(__name__)


class CosyVoice3Tokenizer:
    """Text to token ids and back (`CosyVoice3Tokenizer` in cosyvoice/tokenizer/tokenizer.py).

    Args:
        vocab: byte-level token to id; ids are 0..n-1 and all 256 bytes are there.
        merges: pairs of tokens, best first.
        source: name of the file for messages.

    Special tokens follow the vocabulary: id n is <|endoftext|>, n + 3 is <|endofprompt|>.

    Raises:
        Refused: the vocabulary or the merges contradict themselves.
    """

    def __init__(
        self, vocab: dict[str, int], merges: Sequence[tuple[str, str]], source: str | Path = "tokenizer"
    ) -> None:
        _check_vocab(vocab, source)
        _check_merges(vocab, merges, source)
        self.source = str(source)
        self.base_vocab_size = len(vocab)
        self.special_tokens = {token: len(vocab) + i for i, token in enumerate(SPECIAL_TOKENS)}
        self._tokenizer = _build(vocab, merges)

    @classmethod
    def from_folder(cls, folder: str | Path, on_mismatch: Literal["refuse", "warn"] = "refuse") -> CosyVoice3Tokenizer:
        """Read vocab.json and merges.txt (CosyVoice-BlankEN of the official checkpoint) or else tokenizer.json.

        `tokenizer_config.json` is optional and only checked. From tokenizer.json only the vocabulary, the merges and
        the added tokens are used: everything else has one right value.

        Args:
            folder: where the files are.
            on_mismatch: what to do when `check_probe` fails.

        Raises:
            Refused: a file is missing, too large, damaged, or belongs to another tokenizer.
        """
        folder = Path(folder)
        vocab_path, merges_path, json_path = (folder / n for n in ("vocab.json", "merges.txt", "tokenizer.json"))
        if vocab_path.is_file() and merges_path.is_file():
            tokenizer = cls(read_json(vocab_path, limit=MAX_JSON_BYTES), _read_merges(merges_path), vocab_path)
        elif json_path.is_file():
            data = read_json(json_path, limit=MAX_JSON_BYTES)
            model = data.get("model")
            if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
                raise Refused(f"{json_path}: its model is not BPE")
            tokenizer = cls(_expect(model, "vocab", dict, json_path), _pairs(model, json_path), json_path)
            tokenizer._check_added_tokens(_added_tokens(data, json_path), json_path)
        else:
            raise Refused(f"{folder}: no vocab.json with merges.txt and no tokenizer.json")
        config_path = folder / "tokenizer_config.json"
        if config_path.exists():
            added = read_json(config_path, limit=MAX_JSON_BYTES).get("added_tokens_decoder", {})
            if not isinstance(added, dict) or not all(isinstance(token, dict) for token in added.values()):
                raise Refused(f"{config_path}: added_tokens_decoder is not an object of objects")
            tokenizer._check_added_tokens([{"id": i, **token} for i, token in added.items()], config_path)
        tokenizer.check_probe(on_mismatch)
        return tokenizer

    def __len__(self) -> int:
        """Number of ids, special tokens included (151924 in the official checkpoint)."""
        return self.base_vocab_size + len(self.special_tokens)

    @property
    def end_of_prompt(self) -> int:
        """Id of <|endofprompt|>."""
        return self.special_tokens[END_OF_PROMPT]

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens are found anywhere in it and nothing is added or stripped."""
        try:
            text.encode()
        except UnicodeEncodeError:  # lone surrogates, as a wrongly decoded command line gives them
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: an id outside 0..len-1.
        """
        ids = [int(token) for token in tokens]
        if wrong := [i for i in ids if not 0 <= i < len(self)]:
            raise ValueError(f"token id {wrong[0]} is outside 0..{len(self) - 1}")
        parts: list[str] = []
        for special, run in groupby(ids, lambda i: i >= self.base_vocab_size):
            # Special tokens apart: the byte-level decoder would take the accents of "[ià]" for bytes.
            if not special:
                parts.append(self._tokenizer.decode(list(run)))
            elif not skip_special_tokens:
                parts.extend(SPECIAL_TOKENS[i - self.base_vocab_size] for i in run)
        return "".join(parts)

    def check_probe(self, on_mismatch: Literal["refuse", "warn"] = "refuse") -> bool:
        """Whether the probe sentence gets the ids of the official tokenizer.

        A vocabulary of another size makes no claim to be the official one and passes.

        Raises:
            Refused: official size but other ids, unless `on_mismatch` is "warn" (then logged and False).
        """
        if self.base_vocab_size != OFFICIAL_VOCAB_SIZE or tuple(self.encode(PROBE_TEXT)) == PROBE_IDS:
            return True
        message = (
            f"{self.source}: not the CosyVoice 3 tokenizer (its probe sentence gets other ids; stock Qwen merges join "
            "Chinese characters); take vocab.json and merges.txt from CosyVoice-BlankEN of the official checkpoint"
        )
        if on_mismatch == "refuse":
            raise Refused(message)
        logger.warning(message)
        return False

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, each beside its place first and then renamed.

        `from_folder` and transformers' AutoTokenizer read them to the same ids.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "add_prefix_space": False,
            "added_tokens_decoder": {str(i): _added_token(token) for token, i in self.special_tokens.items()},
            "additional_special_tokens": list(ADDITIONAL_SPECIAL_TOKENS),
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_TEXT,
            "errors": "replace",
            "model_max_length": MODEL_MAX_LENGTH,
            "pad_token": END_OF_TEXT,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        }
        texts = {"tokenizer.json": self._tokenizer.to_str()}
        texts["tokenizer_config.json"] = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        for name, text in texts.items():
            with beside(folder / name) as file:
                file.write_text(text, encoding="utf-8")

    def _check_added_tokens(self, added: Iterable[dict[str, Any]], path: Path) -> None:
        # The original appends its tokens after those of the file: one more or less there would shift every id.
        for token in added:
            content = token.get("content")
            if str(self.special_tokens.get(content) if isinstance(content, str) else None) != str(token.get("id")):
                raise Refused(f"{path}: added token {content!r:.60} with id {token.get('id')!r:.20} is unknown")
            if any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word", "normalized")):
                raise Refused(f"{path}: added token {content!r} does not match as CosyVoice 3's tokens do")


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Qwen2's split into words, each mapped to the byte alphabet."""
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _build(vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges), fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(**_added_token(token)) for token in SPECIAL_TOKENS])
    return tokenizer


def _added_token(token: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": token, **flags}


def _check_vocab(vocab: dict[str, int], source: str | Path) -> None:
    if not 256 <= len(vocab) <= MAX_VOCAB_SIZE:
        raise Refused(f"{source}: {len(vocab)} tokens, expected 256..{MAX_VOCAB_SIZE}")
    if any(type(i) is not int for i in vocab.values()) or set(vocab.values()) != set(range(len(vocab))):
        raise Refused(f"{source}: token ids are not 0..{len(vocab) - 1}, each once")
    if present := [token for token in SPECIAL_TOKENS if token in vocab]:
        raise Refused(f"{source}: special token {present[0]} must not be in the vocabulary, its id would move")
    for token in vocab:
        if not token or not BYTE_ALPHABET.issuperset(token):
            raise Refused(f"{source}: {token!a:.60} is not written in the byte-level alphabet")
    # The BPE would drop bytes that it does not know, in silence.
    if missing := sorted(BYTE_ALPHABET.difference(vocab)):
        raise Refused(f"{source}: {len(missing)} of the 256 bytes have no token, the first is {missing[0]!r}")


def _check_merges(vocab: dict[str, int], merges: Sequence[tuple[str, str]], source: str | Path) -> None:
    for rank, (left, right) in enumerate(merges):
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise Refused(f"{source}: merge {rank + 1}, {left!a:.40} + {right!a:.40}, is not in the vocabulary")
    if len(set(merges)) != len(merges):
        raise Refused(f"{source}: a merge is there twice")


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = [line.strip() for line in read_regular(path, MAX_MERGES_BYTES).split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: cannot be read ({error})") from None
    if lines[0].startswith("#version:"):
        lines = lines[1:]
    return [_pair(line, path) for line in lines if line]


def _pairs(model: dict[str, Any], path: Path) -> list[tuple[str, str]]:
    return [_pair(merge, path) for merge in _expect(model, "merges", list, path)]


def _pair(merge: Any, path: Path) -> tuple[str, str]:
    # tokenizers before 0.20 wrote "left right", later ones write ["left", "right"].
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)] if left and right:
            return left, right
    raise Refused(f"{path}: {merge!a:.60} is not a pair of tokens")


def _added_tokens(data: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    added = _expect(data, "added_tokens", list, path)
    if not all(isinstance(token, dict) for token in added):
        raise Refused(f"{path}: added_tokens is not a list of objects")
    return added


def _expect(data: dict[str, Any], key: str, kind: type, path: Path) -> Any:
    if not isinstance(value := data.get(key), kind):
        raise Refused(f"{path}: {key!r} is missing or not a {kind.__name__}")
    return value
