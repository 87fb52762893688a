"""All parameters of CosyVoice 3, as frozen dataclasses with a strict `config.json` round trip.

Defaults are Fun-CosyVoice3-0.5B-2512 (cosyvoice3.yaml and CosyVoice-BlankEN/config.json of the official checkpoint).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .files.disk import read_json
from .files.errors import CONVERTER, Refused, brief
from .files.strict import check_sizes, from_dict

MODEL_TYPE = "cosyvoice3"


@dataclass(frozen=True)
class Qwen2Config:
    """Qwen2 backbone (transformers `Qwen2Config`; names are kept)."""

    vocab_size: int = 151936
    hidden_size: int = 896
    intermediate_size: int = 4864
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class SamplingConfig:
    """Repetition-aware sampling (`ras_sampling` in cosyvoice/utils/common.py)."""

    top_p: float = 0.8
    top_k: int = 25
    win_size: int = 10
    tau_r: float = 0.1


@dataclass(frozen=True)
class LLMConfig:
    """`CosyVoice3LM`: text and speech tokens in, speech tokens out."""

    qwen2: Qwen2Config = field(default_factory=Qwen2Config)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    speech_token_size: int = 6561
    num_special_tokens: int = 200  # rows past speech_token_size: sos, eos, task, fill and spares, all of them stop ids
    mix_ratio: tuple[int, int] = (5, 15)  # text tokens : speech tokens in a bistream round
    min_token_text_ratio: float = 2.0
    max_token_text_ratio: float = 20.0
    end_of_prompt: int = 151646  # text token <|endofprompt|>: closes the instruction, the model needs one

    @property
    def num_speech_embeddings(self) -> int:
        return self.speech_token_size + self.num_special_tokens

    @property
    def sos(self) -> int:
        return self.speech_token_size

    @property
    def eos(self) -> int:
        return self.speech_token_size + 1

    @property
    def task_id(self) -> int:
        return self.speech_token_size + 2

    @property
    def fill_token(self) -> int:
        return self.speech_token_size + 3


@dataclass(frozen=True)
class DiTConfig:
    """Diffusion transformer (cosyvoice/flow/DiT/dit.py)."""

    dim: int = 1024
    depth: int = 22
    heads: int = 16
    dim_head: int = 64
    ff_mult: int = 2
    mel_dim: int = 80
    mu_dim: int = 80
    spk_dim: int = 80
    out_channels: int = 80
    static_chunk_size: int = 50  # mel frames
    freq_embed_dim: int = 256
    conv_pos_kernel_size: int = 31
    conv_pos_groups: int = 16


@dataclass(frozen=True)
class CFMConfig:
    """Conditional flow matching (cosyvoice/flow/flow_matching.py)."""

    n_timesteps: int = 10
    inference_cfg_rate: float = 0.7
    max_frames: int = 15000  # length of the fixed noise buffer: 300 s, prompt included


@dataclass(frozen=True)
class FlowConfig:
    """`CausalMaskedDiffWithDiT`: speech tokens to mel frames."""

    dit: DiTConfig = field(default_factory=DiTConfig)
    cfm: CFMConfig = field(default_factory=CFMConfig)
    input_size: int = 80
    output_size: int = 80
    spk_embed_dim: int = 192
    vocab_size: int = 6561
    token_mel_ratio: int = 2
    pre_lookahead_len: int = 3  # tokens
    pre_lookahead_channels: int = 1024


@dataclass(frozen=True)
class VocoderConfig:
    """`CausalHiFTGenerator`: mel frames to 24 kHz samples (cosyvoice/hifigan/generator.py)."""

    in_channels: int = 80
    base_channels: int = 512
    nb_harmonics: int = 8
    sampling_rate: int = 24000  # Hz
    nsf_alpha: float = 0.1
    nsf_sigma: float = 0.003
    nsf_voiced_threshold: float = 10.0  # Hz
    upsample_rates: tuple[int, ...] = (8, 5, 3)
    upsample_kernel_sizes: tuple[int, ...] = (16, 11, 7)
    istft_n_fft: int = 16
    istft_hop_len: int = 4
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    source_resblock_kernel_sizes: tuple[int, ...] = (7, 7, 11)
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    lrelu_slope: float = 0.1
    audio_limit: float = 0.99
    conv_pre_look_right: int = 4  # mel frames
    f0_look_right: int = 3  # mel frames
    f0_cond_channels: int = 512

    @property
    def hop_samples(self) -> int:
        """Audio samples per mel frame (480)."""
        return math.prod(self.upsample_rates) * self.istft_hop_len


@dataclass(frozen=True)
class SpeechTokenizerConfig:
    """S3TokenizerV3 (speech_tokenizer_v3.onnx): Whisper log-mel to speech tokens at 25 Hz."""

    n_mels: int = 128
    dim: int = 1280
    heads: int = 20
    depth: int = 12
    mlp_mult: int = 4
    fsmn_kernel_size: int = 31
    fsq_dim: int = 8
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0


@dataclass(frozen=True)
class SpeakerConfig:
    """CAM++ speaker encoder (campplus.onnx): Kaldi fbank to a 192-wide embedding."""

    n_mels: int = 80
    embed_dim: int = 192
    head_channels: int = 32
    init_channels: int = 128
    growth_rate: int = 32
    bottleneck_channels: int = 128
    block_layers: tuple[int, ...] = (12, 24, 16)
    block_dilations: tuple[int, ...] = (1, 2, 2)
    segment_frames: int = 100
    # A last segment that holds fewer frames is divided by segment_frames all the same: the graph's count_include_pad,
    # as onnxruntime 1.18 computes it. False divides by the frames that it holds.
    divide_by_full_segment: bool = True
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class StreamingConfig:
    """Chunk schedule of `CosyVoice3Model.tts` (cosyvoice/cli/model.py), in speech tokens."""

    token_hop_len: int = 25
    stream_scale_factor: int = 2
    max_hop_factor: int = 4  # the hop grows to at most this many times token_hop_len
    silent_tokens: tuple[int, ...] = (1, 2, 28, 29, 55, 248, 494, 2241, 2242, 2322, 2323)
    max_silent_tokens: int = 5  # in a row; later ones are dropped


@dataclass(frozen=True)
class CosyVoice3Config:
    """The whole model. `from_dict` refuses unknown keys, wrong types and absurd sizes."""

    llm: LLMConfig = field(default_factory=LLMConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    speech_tokenizer: SpeechTokenizerConfig = field(default_factory=SpeechTokenizerConfig)
    speaker: SpeakerConfig = field(default_factory=SpeakerConfig)
    streaming: StreamingConfig = field(default_factory=StreamingConfig)
    sample_rate: int = 24000  # Hz

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CosyVoice3Config:
        """Build from a parsed `config.json`; `model_type` must be there, `quantization*` is left to weights.py.

        Raises:
            Refused: unknown key, wrong type, an absurd size, or sizes that do not fit each other.
        """
        data = dict(data)
        if (found := data.pop("model_type", None)) != MODEL_TYPE:
            raise Refused(f"config.json: model_type is {brief(found)}, expected {MODEL_TYPE!r}")
        for key in ("quantization", "quantization_config", "provenance"):
            data.pop(key, None)
        config = from_dict(cls, data)
        check_sizes(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": MODEL_TYPE, **asdict(self)}

    @classmethod
    def load(cls, folder: str | Path) -> CosyVoice3Config:
        """Read `config.json` of a converted folder."""
        return cls.from_dict(read_settings(folder))


def read_settings(folder: str | Path) -> dict[str, Any]:
    """Content of a converted folder's `config.json`."""
    return read_json(Path(folder) / "config.json", f"give a folder written by {CONVERTER}")
