"""Front-end settings in the official text files: mel, tokenizer, and the id that ends an instruction."""

from __future__ import annotations

from typing import Any

from convert.arguments import Arguments
from convert.references import resolve
from port.config import CosyVoice3Config
from port.files.errors import Refused, brief
from port.frontend.special_tokens import END_OF_PROMPT


def end_of_prompt(tokenizer: dict[str, Any]) -> int:
    """Id of <|endofprompt|>: as the file lists it, otherwise the first id after the tokens that the file adds.

    Raises:
        Refused: no added tokens by id.
    """
    added = tokenizer.get("added_tokens_decoder")
    if not isinstance(added, dict) or not added or not all(key.isdecimal() and len(key) < 8 for key in added):
        raise Refused("added_tokens_decoder: expected added tokens by id")
    own = [key for key, token in added.items() if isinstance(token, dict) and token.get("content") == END_OF_PROMPT]
    return int(own[0]) if own else 1 + max(map(int, added))


def check_front_end(document: dict[str, Any], config: CosyVoice3Config) -> None:
    """Check the front end in cosyvoice3.yaml; the port supports exactly one.

    Raises:
        Refused: a value that is not supported, or that does not fit the networks.
    """
    codes = config.llm.speech_token_size
    if config.flow.vocab_size != codes:
        raise Refused(f"flow.vocab_size: {config.flow.vocab_size} differs from llm.speech_token_size {codes}")
    if config.vocoder.in_channels != config.flow.output_size:
        raise Refused(f"hift.in_channels: {config.vocoder.in_channels} differs from the flow's mel channels")
    top = Arguments("top level", document, complete=True)
    top.expect(sample_rate=config.sample_rate)
    top.allow(token_frame_rate=25)
    if config.vocoder.sampling_rate != config.sample_rate:
        raise Refused(f"hift.sampling_rate: {config.vocoder.sampling_rate}; use {config.sample_rate}")
    mel = Arguments("feat_extractor", resolve(document, part_of(document, "feat_extractor"), "feat_extractor"), True)
    if (fmax := mel.values.get("fmax")) is not None:
        raise Refused(
            f"feat_extractor.fmax: {brief(fmax)} is not supported; the published file was corrected to null in "
            "December 2025: write `fmax: null`, or download cosyvoice3.yaml again"
        )
    mel.expect(n_fft=1920, num_mels=config.flow.output_size, sampling_rate=config.sample_rate, win_size=1920)
    mel.expect(hop_size=config.vocoder.hop_samples, fmin=0, fmax=None)
    mel.allow(center=False)
    mel.done()
    tokenizer = Arguments("get_tokenizer", resolve(document, part_of(document, "get_tokenizer"), "get_tokenizer"), True)
    tokenizer.expect(token_path=document.get("qwen_pretrain_path"))
    tokenizer.allow(version="cosyvoice3")
    tokenizer.ignore("skip_special_tokens")  # of decoding, which nothing asks for
    tokenizer.done()


def part_of(document: dict[str, Any], name: str) -> Any:
    """An entry of the yaml.

    Raises:
        Refused: it is missing.
    """
    if name not in document:
        raise Refused(f"{name}: missing")
    return document[name]
