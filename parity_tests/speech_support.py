"""Both sides ready to speak, and recordings for them to speak from."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import soundfile
import torch

from convert.mapping import PORT_ROOT, convert
from convert.official import SPEAKER_FILE, SPEECH_TOKENIZER_FILE
from convert.onnx_weights import read_speaker, read_speech_tokenizer
from parity_tests.adapters.own import OwnPort
from parity_tests.live import live_state
from parity_tests.models import Models
from port import cosyvoice3 as port_side
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
from port.frontend.tokenizer import CosyVoice3Tokenizer
from port.model import CosyVoice3Model as PortModel
from reference import cosyvoice3 as reference_side
from reference.model import CosyVoice3Model as ReferenceModel

TOKENIZER_FOLDER = "CosyVoice-BlankEN"
SYSTEM = "You are a helpful assistant.<|endofprompt|>"
WORDS, PROMPT_WORDS = "The morning train is late.", "How many people?"
LONGER = "The morning train is late, and the rain stopped."  # for two chunks

# The smallest model for the driver: official frame rates and chunks, few tokens.
SMALL = CosyVoice3Config(
    llm=LLMConfig(
        qwen2=Qwen2Config(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        ),
        speech_token_size=81,
        num_special_tokens=8,
        end_of_prompt=9,
    ),
    flow=FlowConfig(
        dit=DiTConfig(dim=32, depth=1, heads=2, dim_head=16, freq_embed_dim=16, conv_pos_kernel_size=7),
        spk_embed_dim=8,
        vocab_size=81,
        pre_lookahead_channels=8,
    ),
    vocoder=VocoderConfig(base_channels=16, f0_cond_channels=8, resblock_kernel_sizes=(3,),
                          resblock_dilation_sizes=((1,),)),
    speech_tokenizer=SpeechTokenizerConfig(dim=16, heads=2, depth=1, fsq_dim=4),
    speaker=SpeakerConfig(embed_dim=8, head_channels=2, init_channels=8, growth_rate=4, bottleneck_channels=8,
                          block_layers=(1,), block_dilations=(1,)),
)  # fmt: skip


@dataclass(frozen=True)
class Sides:
    """`CosyVoice3` three times with the same weights: the port, and the reference in float32 and float64."""

    port: port_side.CosyVoice3
    single: reference_side.CosyVoice3
    double: reference_side.CosyVoice3


def small_models(seed: int = 0, forms: Collection[str] | None = None) -> tuple[ReferenceModel, PortModel]:
    """Both sides of `SMALL` with the same live random weights; `forms` as for `OwnPort`."""
    reference = ReferenceModel(SMALL).eval()
    rng = np.random.default_rng(seed)
    port, tensors = PortModel(SMALL), dict[str, np.ndarray]()
    for part in ("llm", "flow", "hift", "speech_tokenizer", "speaker"):
        module = getattr(reference, PORT_ROOT[part])
        state = live_state({k: v.numpy() for k, v in module.state_dict().items()}, rng)
        if part == "llm":
            state["llm.model.lm_head.weight"] = state["llm.model.model.embed_tokens.weight"]
        state |= {k: np.abs(v) + 0.5 for k, v in state.items() if k.endswith("running_var")}
        module.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
        tensors |= convert(part, state, SMALL).tensors
    port.load_weights([(k, mx.array(v)) for k, v in tensors.items()], strict=True)
    return reference, OwnPort(forms=forms).as_run(port.eval())


def sides(models: Models) -> Sides:
    """The suite's models with their front ends, without wetext, which other tests judge."""
    source = models.source
    for name, read, file in (
        ("speech_tokenizer", read_speech_tokenizer, SPEECH_TOKENIZER_FILE),
        ("speaker", read_speaker, SPEAKER_FILE),
    ):
        held = read(source / file)
        state = {key: torch.from_numpy(np.array(held[key])) for key in held}
        for model in (models.single, models.double):
            getattr(model, name).load_state_dict(state, strict=True)
    tokenizer = CosyVoice3Tokenizer.from_folder(source / TOKENIZER_FOLDER)

    def front_end(side: Any, model: Any) -> Any:
        return side.CosyVoice3(
            model, side.CosyVoiceFrontEnd(tokenizer, model.speech_tokenizer, model.speaker, models.port.config)
        )

    return Sides(
        front_end(port_side, models.port),
        front_end(reference_side, models.single),
        front_end(reference_side, models.double),
    )


def copy_folder(models: Models, folder: Path) -> Path:
    """Copy the converted folder, for a test to write into."""
    return Path(shutil.copytree(models.folder, folder))


def write_voice(path: Path, seconds: float, rate: int = 24000, pitch: float = 140.0) -> Path:
    """Write a buzzing, swelling tone with a little noise, similar enough to a voice for every feature."""
    t = np.arange(int(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * pitch * h * t + h) / h for h in range(1, 12))
    noise = np.random.default_rng(int(pitch)).standard_normal(len(t))
    wave = 0.1 * tone * (1 + np.sin(2 * np.pi * 3 * t)) + 0.003 * noise
    soundfile.write(path, wave.astype(np.float32), rate)
    return path
