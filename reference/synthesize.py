"""An official-layout checkpoint with random weights, each of which affects the output.

`python -m reference.synthesize --size tiny|full --seed N DIR` writes llm.pt, flow.pt, hift.pt, the two ONNX files,
cosyvoice3.yaml and CosyVoice-BlankEN/, laid out like the official folder. `full` has its shapes, tensor for tensor.

Names and shapes come from the reference's own modules, built without storage. Values follow the rules below: fan-in
scaled, so that activations stay of order one through the depth; gains, gates and norms away from zero; a pitch that is
voiced in some frames and unvoiced in others; a waveform well inside the limits.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from port.config import (
    CosyVoice3Config,
    DiTConfig,
    FlowConfig,
    LLMConfig,
    Qwen2Config,
    SpeakerConfig,
    SpeechTokenizerConfig,
    VocoderConfig,
)
from port.frontend.special_tokens import ADDITIONAL_SPECIAL_TOKENS, BASE_SPECIAL_TOKENS
from reference.export_onnx import export_speaker, export_speech_tokenizer, live_speaker, live_speech_tokenizer
from reference.flow.decoder import CausalMaskedDiffWithDiT
from reference.flow.layers import rotary_frequencies
from reference.llm.speech_lm import CosyVoice3LM
from reference.official_layout import write_texts
from reference.vocoder.generator import CausalHiFTGenerator

TINY_TEXT_VOCAB = 320  # byte-level tokens of the small tokenizer; the special tokens come on top
EMBEDDED = "llm.model.model.embed_tokens.weight"
TIED = "llm.model.lm_head.weight"


@dataclass(frozen=True)
class Rule:
    """Values of every tensor whose key ends in `pattern`: normal around `mean`.

    Args:
        spread: standard deviation; divided by the square root of the fan-in when `scaled`.
        positive: take absolute values, for gains and Snake's alpha.
    """

    pattern: str
    spread: float
    mean: float = 0.0
    scaled: bool = False
    positive: bool = False


def _scaled(pattern: str, gain: float) -> Rule:
    return Rule(pattern, gain, scaled=True)


# The first rule that fits decides.
RULES: dict[str, tuple[Rule, ...]] = {
    "llm": (
        Rule(r"(embed_tokens|speech_embedding)\.weight", 1.0),
        Rule(r"norm\.weight", 0.15, mean=1.0),
        # Averaging over positions and the SiLU gate shrink their output.
        _scaled(r"(o_proj|down_proj)\.weight", 1.5),
        _scaled(r"(q_proj|k_proj)\.weight", 1.3),
        _scaled(r"llm_decoder\.weight", 2.0),
        Rule(r"\.bias", 0.2),
        _scaled(r"\.weight", 1.0),
    ),
    "flow": (
        Rule(r"input_embedding\.weight", 1.0),
        # Its input is a vector of length one, so its entries are small.
        Rule(r"spk_embed_affine_layer\.weight", 0.7),
        # Scales and shifts around zero; gates of both signs, well away from it.
        _scaled(r"attn_norm\.linear\.weight", 0.6),
        Rule(r"attn_norm\.linear\.bias", 0.3),
        _scaled(r"norm_out\.linear\.weight", 0.6),
        Rule(r"norm_out\.linear\.bias", 0.3),
        _scaled(r"time_mlp\.\d\.weight", 1.6),
        _scaled(r"(conv_pos_embed\.conv\d\.0|pre_lookahead_layer\.conv\d|to_out\.0|ff\.2)\.weight", 1.4),
        _scaled(r"(to_q|to_k)\.weight", 1.3),
        Rule(r"\.bias", 0.1),
        _scaled(r"\.weight", 1.0),
    ),
    "hift": (
        Rule(r"resblocks\.\d+\.convs\d\.\d\.parametrizations\.weight\.original0", 0.08, mean=0.5, positive=True),
        Rule(r"f0_predictor\..*original0", 0.2, mean=1.3, positive=True),
        Rule(r"conv_post\..*original0", 0.1, mean=0.6, positive=True),
        Rule(r"original0", 0.15, mean=1.0, positive=True),
        Rule(r"original1", 0.3),
        Rule(r"alpha", 0.25, mean=1.0, positive=True),
        # The excitation is ten times smaller than the features that it joins.
        _scaled(r"source_downs\.\d\.weight", 2.0),
        _scaled(r"l_linear\.weight", 4.0),
        _scaled(r"classifier\.weight", 4.0),
        # Log magnitudes: the bins of a sample add up, and a few loud ones would leave the range.
        Rule(r"conv_post\.bias", 0.1, mean=-1.2),
        Rule(r"\.bias", 0.1),
    ),
}


def tiny_config() -> CosyVoice3Config:
    """Small widths, every kind of part; official mel bins, speech token ids and chunks of 50 frames."""
    text_vocab = TINY_TEXT_VOCAB + len({*BASE_SPECIAL_TOKENS, *ADDITIONAL_SPECIAL_TOKENS})
    qwen2 = Qwen2Config(
        vocab_size=text_vocab,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    return CosyVoice3Config(
        llm=LLMConfig(qwen2=qwen2, end_of_prompt=TINY_TEXT_VOCAB + len(BASE_SPECIAL_TOKENS)),
        flow=FlowConfig(dit=DiTConfig(dim=64, depth=2, heads=4, dim_head=16), pre_lookahead_channels=32),
        vocoder=VocoderConfig(base_channels=32, f0_cond_channels=24),
        speech_tokenizer=SpeechTokenizerConfig(dim=32, heads=2, depth=2),
        speaker=SpeakerConfig(
            head_channels=8, init_channels=16, growth_rate=8, bottleneck_channels=16, block_layers=(2, 3, 2)
        ),
    )


def full_config() -> CosyVoice3Config:
    """The official sizes, with the special tokens where the small tokenizer has them."""
    return CosyVoice3Config(llm=LLMConfig(end_of_prompt=TINY_TEXT_VOCAB + len(BASE_SPECIAL_TOKENS)))


SIZES = {"tiny": tiny_config, "full": full_config}


def synthesize(folder: Path, size: str = "tiny", seed: int = 0, vocabulary: Path | None = None) -> None:
    """Write a checkpoint; one part is in memory at a time.

    Args:
        folder: made if missing.
        size: `tiny` or `full`.
        seed: decides every value, whatever the order of writing.
        vocabulary: folder with the official vocab.json and merges.txt, for `full` only; a small tokenizer when None,
            since the official one cannot be made from nothing.

    Raises:
        FileExistsError: `folder` holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists and is not empty; choose another folder")
    config = SIZES[size]() if vocabulary is None else CosyVoice3Config()
    folder.mkdir(parents=True, exist_ok=True)
    write_texts(folder, config, vocabulary)
    for part in RULES:
        torch.save(state_dict(part, config, seed), folder / f"{part}.pt")
    tokenizer = live_speech_tokenizer(config.speech_tokenizer, seed)
    export_speech_tokenizer(tokenizer, folder / "speech_tokenizer_v3.onnx")
    export_speaker(live_speaker(config.speaker, seed), folder / "campplus.onnx")


def build(part: str, config: CosyVoice3Config) -> nn.Module:
    """The reference's module of one part on the meta device: names and shapes, no storage."""
    with torch.device("meta"):
        if part == "llm":
            return CosyVoice3LM(config.llm)
        return CausalMaskedDiffWithDiT(config.flow) if part == "flow" else CausalHiFTGenerator(config.vocoder)


def state_dict(part: str, config: CosyVoice3Config, seed: int) -> OrderedDict[str, Tensor]:
    """Official state dict of one part in float32, in the original's order of keys."""
    shapes = {key: value.shape for key, value in build(part, config).state_dict().items()}
    state = OrderedDict((key, _fill(part, key, shape, seed)) for key, shape in shapes.items() if key != TIED)
    if part == "llm":
        # One storage with two names, as in the original's file.
        state[TIED] = state[EMBEDDED]
        state = OrderedDict((key, state[key]) for key in shapes)
    if part == "flow":
        state["decoder.estimator.rotary_embed.inv_freq"] = rotary_frequencies(config.flow.dit.dim_head)
    if part == "hift":
        _shape_pitch(state)
        # The features' mean is not zero, which with few channels would make one bin very loud or silent.
        state["conv_post.parametrizations.weight.original1"] -= state[
            "conv_post.parametrizations.weight.original1"
        ].mean(dim=(1, 2), keepdim=True)
    return state


def _fill(part: str, key: str, shape: torch.Size, seed: int) -> Tensor:
    rule = next((rule for rule in RULES[part] if re.search(rule.pattern + "$", key)), None)
    if rule is None:
        return torch.empty(shape)  # the one buffer, which `state_dict` computes
    digest = hashlib.sha256(f"{seed}/{part}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    fan_in = shape.numel() / shape[0] if rule.scaled else 1.0
    value = torch.empty(shape).normal_(rule.mean, rule.spread / fan_in**0.5, generator=generator)
    return value.abs_() if rule.positive else value


def _shape_pitch(state: dict[str, Tensor]) -> None:
    """Let one channel of the pitch predictor decide whether a frame is voiced.

    Far below zero an ELU gives -1, which the bias cancels: such a frame has a pitch near zero (unvoiced, but not
    exactly zero, so the other channels still matter). Other frames reach some hundred Hz.
    """
    state["f0_predictor.condnet.8.parametrizations.weight.original0"][0] = 3.5
    state["f0_predictor.condnet.8.bias"][0] = -0.5
    state["f0_predictor.classifier.weight"][0, 0] = 36.0
    state["f0_predictor.classifier.bias"][0] = 37.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m reference.synthesize", description="Write an official-layout checkpoint with random weights."
    )
    parser.add_argument("--size", choices=SIZES, default="tiny", help="full has the official shapes and takes 4.4 GB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--vocabulary", type=Path, metavar="DIR", help="folder with the official vocab.json and merges.txt, for full"
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    if options.vocabulary and options.size != "full":
        parser.error("--vocabulary goes with --size full: the tiny model has no rows for it")
    try:
        synthesize(options.folder, options.size, options.seed, options.vocabulary)
    except OSError as error:
        print(f"synthesize: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
