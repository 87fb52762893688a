"""Convert the official configuration files and the original's constructor arguments to the port's configuration.

Strict: an unknown value, key or class path raises an error that names it. A silent default would give a model that
loads and speaks nonsense.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.arguments import Arguments
from convert.checkpoint import read_yaml
from convert.front_end import check_front_end, end_of_prompt, part_of
from convert.onnx_weights import read_speaker, read_speech_tokenizer
from convert.qwen2 import qwen2_config
from convert.references import resolve
from port.config import (
    CFMConfig,
    CosyVoice3Config,
    DiTConfig,
    FlowConfig,
    LLMConfig,
    SamplingConfig,
    SpeakerConfig,
    SpeechTokenizerConfig,
    VocoderConfig,
    check_sizes,
    from_dict,
)
from port.files.disk import read_json
from port.files.errors import Refused
from port.frontend.speech_tokenizer import FSQ_LEVELS

YAML_FILE = "cosyvoice3.yaml"
QWEN_FILE = "CosyVoice-BlankEN/config.json"
TOKENIZER_FOLDER = "CosyVoice-BlankEN"
TOKENIZER_FILE = f"{TOKENIZER_FOLDER}/tokenizer_config.json"
VOCABULARY_FILES = (f"{TOKENIZER_FOLDER}/vocab.json", f"{TOKENIZER_FOLDER}/merges.txt")
SPEECH_TOKENIZER_FILE = "speech_tokenizer_v3.onnx"
SPEAKER_FILE = "campplus.onnx"


def dit_config(arguments: dict[str, Any], where: str = "flow.decoder.estimator", complete: bool = False) -> DiTConfig:
    """Arguments of `DiT` (cosyvoice/flow/DiT/dit.py) as a `DiTConfig`.

    Args:
        arguments: by name.
        where: their place, for messages.
        complete: refuse a missing one instead of taking the official value; so in all readers below.

    Raises:
        Refused: an argument or a value that the port has no counterpart for.
    """
    given = Arguments(where, arguments, complete)
    values = given.take("dim", "depth", "heads", "dim_head", "ff_mult", "mel_dim", "mu_dim", "spk_dim", "out_channels")
    values |= given.take("static_chunk_size")
    # The original accepts a number of left chunks and ignores it; it always behaves as with -1.
    given.allow(num_decoding_left_chunks=-1, long_skip_connection=False)
    given.ignore("dropout")
    given.done()
    config = from_dict(DiTConfig, values, f".{where}")
    if config.dim % config.conv_pos_groups:
        raise Refused(f"{where}.dim: {config.dim} is not a multiple of {config.conv_pos_groups} convolution groups")
    if config.dim_head % 2:
        raise Refused(f"{where}.dim_head: {config.dim_head} is odd, and rotary turns pairs of channels")
    return config


def flow_config(arguments: dict[str, Any], where: str = "flow", complete: bool = False) -> FlowConfig:
    """Arguments of `CausalMaskedDiffWithDiT` (cosyvoice/flow/flow.py), or of its decoder `CausalConditionalCFM`
    alone (cosyvoice/flow/flow_matching.py), as a `FlowConfig`.

    Raises:
        Refused: an argument or a value that the port has no counterpart for.
    """
    if "estimator" in arguments:
        cfm, dit = _decoder_config(arguments, where, complete)
        return FlowConfig(dit=dit, cfm=cfm, input_size=dit.mu_dim, output_size=dit.out_channels)
    given = Arguments(where, arguments, complete)
    values = given.take("input_size", "output_size", "spk_embed_dim", "vocab_size", "token_mel_ratio")
    values |= given.take("pre_lookahead_len")
    cfm, dit = _decoder_config(given.require("decoder"), f"{where}.decoder", complete)
    lookahead = Arguments(f"{where}.pre_lookahead_layer", given.require("pre_lookahead_layer"), complete)
    values["pre_lookahead_channels"] = lookahead.require("channels")
    given.allow(output_type="mel", input_frame_rate=25)
    given.ignore("only_mask_loss")
    given.done()
    values = from_dict(FlowConfig, values, f".{where}").__dict__ | {"cfm": cfm, "dit": dit}
    config = FlowConfig(**values)
    lookahead.expect(in_channels=config.input_size, pre_lookahead_len=config.pre_lookahead_len)
    lookahead.done()
    for name, value, wanted in (
        ("mu_dim", dit.mu_dim, config.input_size),
        ("mel_dim", dit.mel_dim, config.output_size),
        ("spk_dim", dit.spk_dim, config.output_size),
        ("out_channels", dit.out_channels, config.output_size),
    ):
        if value != wanted:
            raise Refused(f"{where}.decoder.estimator.{name}: {value} does not fit the flow's {wanted} channels")
    return config


def _decoder_config(arguments: Any, where: str, complete: bool) -> tuple[CFMConfig, DiTConfig]:
    given = Arguments(where, arguments, complete)
    dit = dit_config(given.require("estimator"), f"{where}.estimator", complete)
    params = given.require("cfm_params")
    content = params["content"] if isinstance(params, dict) and params.keys() == {"content"} else params
    cfm = Arguments(f"{where}.cfm_params", content, complete)
    values = cfm.take("inference_cfg_rate")
    cfm.expect(solver="euler", t_scheduler="cosine")
    cfm.ignore("sigma_min", "training_cfg_rate", "reg_loss_type")
    cfm.done()
    given.ignore("in_channels", "n_spks", "spk_emb_dim")  # stored by the original, never read
    given.done()
    return from_dict(CFMConfig, values, f".{where}.cfm_params"), dit


def vocoder_config(arguments: dict[str, Any], where: str = "hift", complete: bool = False) -> VocoderConfig:
    """Arguments of `CausalHiFTGenerator` (cosyvoice/hifigan/generator.py) as a `VocoderConfig`.

    Raises:
        Refused: an argument or a value that the port has no counterpart for.
    """
    given = Arguments(where, arguments, complete)
    istft = Arguments(f"{where}.istft_params", given.require("istft_params"))
    f0 = Arguments(f"{where}.f0_predictor", given.require("f0_predictor"))
    names = (set(VocoderConfig.__dataclass_fields__)) - {"istft_n_fft", "istft_hop_len", "f0_look_right"}
    values = given.take(*(names - {"f0_cond_channels"}))
    values |= {"istft_n_fft": istft.require("n_fft"), "istft_hop_len": istft.require("hop_len")}
    values["f0_cond_channels"] = f0.require("cond_channels")
    istft.done()
    given.done()
    config = from_dict(VocoderConfig, values, f".{where}")
    f0.allow(num_class=1, in_channels=config.in_channels)
    f0.done()
    stages = len(config.upsample_rates)
    for name, count in (
        ("upsample_kernel_sizes", stages),
        ("source_resblock_kernel_sizes", stages),
        ("source_resblock_dilation_sizes", stages),
        ("resblock_dilation_sizes", len(config.resblock_kernel_sizes)),
    ):
        if len(getattr(config, name)) != count:
            raise Refused(f"{where}.{name}: {len(getattr(config, name))} entries, expected {count}")
    if config.base_channels % 2**stages:
        raise Refused(f"{where}.base_channels: {config.base_channels} cannot be halved {stages} times")
    return config


def llm_config(
    arguments: dict[str, Any], qwen2: dict[str, Any] | None = None, where: str = "llm", complete: bool = False
) -> LLMConfig:
    """Arguments of `CosyVoice3LM` (cosyvoice/llm/llm.py) as an `LLMConfig`.

    Args:
        arguments: as in the yaml; a key `qwen2` may stand for the last argument.
        qwen2: content of CosyVoice-BlankEN/config.json.

    Raises:
        Refused: an argument or a value that the port has no counterpart for.
    """
    given = Arguments(where, arguments, complete)
    backbone = qwen2_config(qwen2 if qwen2 is not None else given.require("qwen2"), complete=complete)
    values = given.take("speech_token_size", "mix_ratio")
    given.expect(llm_input_size=backbone.hidden_size, llm_output_size=backbone.hidden_size)
    sampling = from_dict(SamplingConfig, given.take("sampling").get("sampling", {}), f".{where}.sampling")
    encoder = Arguments(f"{where}.llm", given.take("llm").get("llm", {}))
    encoder.ignore("pretrain_path")
    encoder.done()
    given.ignore("length_normalized_loss", "lsm_weight")
    given.done()
    values = from_dict(LLMConfig, values, f".{where}").__dict__ | {"qwen2": backbone, "sampling": sampling}
    return LLMConfig(**values)


def load_config(folder: Path) -> CosyVoice3Config:
    """Configuration of an official checkpoint folder, from its text files and its two ONNX graphs.

    Raises:
        Refused: a file that is missing, broken, or asks for code; a value or class path that the model does not know.
    """
    config = text_config(folder)
    tokenizer = read_speech_tokenizer(folder / SPEECH_TOKENIZER_FILE).config
    return with_front_end(config, tokenizer, read_speaker(folder / SPEAKER_FILE).config)


def text_config(folder: Path) -> CosyVoice3Config:
    """What cosyvoice3.yaml and, in CosyVoice-BlankEN, config.json and tokenizer_config.json say; the sizes of the two
    ONNX files stay the official ones.

    Raises:
        Refused: a file that is missing, broken, or asks for code; a value or class path that the model does not know.
    """
    qwen2, tokens = read_json(folder / QWEN_FILE), read_json(folder / TOKENIZER_FILE)
    document = read_yaml(folder / YAML_FILE)
    path = folder / QWEN_FILE
    try:
        qwen2_config(qwen2, complete=True)
        path = folder / TOKENIZER_FILE
        prompt_end = end_of_prompt(tokens)
        path = folder / YAML_FILE
        parts = {name: resolve(document, part_of(document, name), name) for name in ("llm", "flow", "hift")}
        config = CosyVoice3Config(
            llm=replace(llm_config(parts["llm"], qwen2, complete=True), end_of_prompt=prompt_end),
            flow=flow_config(parts["flow"], complete=True),
            vocoder=vocoder_config(parts["hift"], complete=True),
        )
        check_front_end(document, config)
        # The original puts the folder's own path there, and reads config.json from it.
        encoder = Arguments("llm.llm", parts["llm"]["llm"], complete=True)
        encoder.expect(pretrain_path=document.get("qwen_pretrain_path"))
    except Refused as error:
        raise Refused(f"{path}: {str(error).removeprefix('config.')}") from None
    return config


def with_front_end(
    config: CosyVoice3Config, speech_tokenizer: SpeechTokenizerConfig, speaker: SpeakerConfig
) -> CosyVoice3Config:
    """The configuration with the sizes that the two ONNX files have.

    Raises:
        Refused: sizes that do not fit the other parts.
    """
    codes = FSQ_LEVELS**speech_tokenizer.fsq_dim
    if codes != config.llm.speech_token_size:
        raise Refused(f"speech_tokenizer: {codes} codes, the language model has {config.llm.speech_token_size}")
    if speaker.embed_dim != config.flow.spk_embed_dim:
        raise Refused(f"speaker: {speaker.embed_dim} wide, flow.spk_embed_dim is {config.flow.spk_embed_dim}")
    config = replace(config, speech_tokenizer=speech_tokenizer, speaker=speaker)
    check_sizes(config)
    return config
