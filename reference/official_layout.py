"""The text files of an official checkpoint folder: cosyvoice3.yaml and CosyVoice-BlankEN/."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from port.config import CosyVoice3Config
from port.frontend.special_tokens import BASE_SPECIAL_TOKENS, END_OF_TEXT
from reference.tiny_tokenizer import build_tiny_tokenizer

YAML_FILE = "cosyvoice3.yaml"
QWEN_FOLDER = "CosyVoice-BlankEN"

# Keys, tags and class paths of the official file; the sections that only training reads are left out.
_YAML = """\
__set_seed1: !apply:random.seed [1986]
__set_seed2: !apply:numpy.random.seed [1986]
__set_seed3: !apply:torch.manual_seed [1986]
__set_seed4: !apply:torch.cuda.manual_seed_all [1986]

sample_rate: {config.sample_rate}
llm_input_size: {qwen2.hidden_size}
llm_output_size: {qwen2.hidden_size}
spk_embed_dim: {flow.spk_embed_dim}
qwen_pretrain_path: ''
token_frame_rate: 25
token_mel_ratio: {flow.token_mel_ratio}
chunk_size: {chunk_size} # speech tokens
num_decoding_left_chunks: -1

llm: !new:cosyvoice.llm.llm.CosyVoice3LM
    llm_input_size: !ref <llm_input_size>
    llm_output_size: !ref <llm_output_size>
    speech_token_size: {llm.speech_token_size}
    length_normalized_loss: True
    lsm_weight: 0
    mix_ratio: {llm.mix_ratio}
    llm: !new:cosyvoice.llm.llm.Qwen2Encoder
        pretrain_path: !ref <qwen_pretrain_path>
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: {llm.sampling.top_p}
        top_k: {llm.sampling.top_k}
        win_size: {llm.sampling.win_size}
        tau_r: {llm.sampling.tau_r}

flow: !new:cosyvoice.flow.flow.CausalMaskedDiffWithDiT
    input_size: {flow.input_size}
    output_size: {flow.output_size}
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: 'mel'
    vocab_size: {flow.vocab_size}
    input_frame_rate: !ref <token_frame_rate>
    only_mask_loss: True
    token_mel_ratio: !ref <token_mel_ratio>
    pre_lookahead_len: {flow.pre_lookahead_len}
    pre_lookahead_layer: !new:cosyvoice.transformer.upsample_encoder.PreLookaheadLayer
        in_channels: {flow.input_size}
        channels: {flow.pre_lookahead_channels}
        pre_lookahead_len: {flow.pre_lookahead_len}
    decoder: !new:cosyvoice.flow.flow_matching.CausalConditionalCFM
        in_channels: 240
        n_spks: 1
        spk_emb_dim: {dit.spk_dim}
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                solver: 'euler'
                t_scheduler: 'cosine'
                training_cfg_rate: 0.2
                inference_cfg_rate: {flow.cfm.inference_cfg_rate}
                reg_loss_type: 'l1'
        estimator: !new:cosyvoice.flow.DiT.dit.DiT
            dim: {dit.dim}
            depth: {dit.depth}
            heads: {dit.heads}
            dim_head: {dit.dim_head}
            ff_mult: {dit.ff_mult}
            mel_dim: {dit.mel_dim}
            mu_dim: {dit.mu_dim}
            spk_dim: {dit.spk_dim}
            out_channels: {dit.out_channels}
            static_chunk_size: !ref <chunk_size> * <token_mel_ratio>
            num_decoding_left_chunks: !ref <num_decoding_left_chunks>

hift: !new:cosyvoice.hifigan.generator.CausalHiFTGenerator
    in_channels: {hift.in_channels}
    base_channels: {hift.base_channels}
    nb_harmonics: {hift.nb_harmonics}
    sampling_rate: !ref <sample_rate>
    nsf_alpha: {hift.nsf_alpha}
    nsf_sigma: {hift.nsf_sigma}
    nsf_voiced_threshold: {hift.nsf_voiced_threshold:g}
    upsample_rates: {hift.upsample_rates}
    upsample_kernel_sizes: {hift.upsample_kernel_sizes}
    istft_params:
        n_fft: {hift.istft_n_fft}
        hop_len: {hift.istft_hop_len}
    resblock_kernel_sizes: {hift.resblock_kernel_sizes}
    resblock_dilation_sizes: {hift.resblock_dilation_sizes}
    source_resblock_kernel_sizes: {hift.source_resblock_kernel_sizes}
    source_resblock_dilation_sizes: {hift.source_resblock_dilation_sizes}
    lrelu_slope: {hift.lrelu_slope}
    audio_limit: {hift.audio_limit}
    conv_pre_look_right: {hift.conv_pre_look_right}
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.CausalConvRNNF0Predictor
        num_class: 1
        in_channels: {hift.in_channels}
        cond_channels: {hift.f0_cond_channels}

get_tokenizer: !name:cosyvoice.tokenizer.tokenizer.get_qwen_tokenizer
    token_path: !ref <qwen_pretrain_path>
    skip_special_tokens: True
    version: cosyvoice3
allowed_special: 'all'
feat_extractor: !name:matcha.utils.audio.mel_spectrogram
    n_fft: 1920
    num_mels: {flow.output_size}
    sampling_rate: !ref <sample_rate>
    hop_size: {hift.hop_samples}
    win_size: 1920
    fmin: 0
    fmax: null
    center: False
"""


def write_texts(folder: Path, config: CosyVoice3Config, vocabulary: Path | None = None) -> None:
    """Write cosyvoice3.yaml and the files of CosyVoice-BlankEN/.

    Args:
        config: the sizes to write.
        vocabulary: folder with the official vocab.json and merges.txt to copy; when None, a small tokenizer is trained
            whose special tokens have the ids of `config`.
    """
    qwen = folder / QWEN_FOLDER
    qwen.mkdir(parents=True)
    values = {
        "config": config,
        "llm": config.llm,
        "qwen2": config.llm.qwen2,
        "flow": config.flow,
        "dit": config.flow.dit,
        "hift": config.vocoder,
        "chunk_size": config.flow.dit.static_chunk_size // config.flow.token_mel_ratio,
    }
    # Tuples print with round brackets, yaml wants square ones, and the template itself has neither.
    text = _YAML.format(**values).replace("(", "[").replace(")", "]")
    (folder / YAML_FILE).write_text(text, encoding="utf-8")
    first_added = config.llm.end_of_prompt - len(BASE_SPECIAL_TOKENS)
    if vocabulary is None:
        build_tiny_tokenizer(qwen, first_added)
    else:
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(vocabulary / name, qwen / name)
        _write_json(qwen / "tokenizer_config.json", _tokenizer_config(first_added))
    _write_json(qwen / "config.json", _qwen2_config(config, first_added))
    _write_json(qwen / "generation_config.json", _generation_config(first_added))


def _qwen2_config(config: CosyVoice3Config, first_added: int) -> dict[str, Any]:
    qwen2 = config.llm.qwen2
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": first_added,
        "eos_token_id": first_added + 2,
        "hidden_act": "silu",
        "hidden_size": qwen2.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": qwen2.intermediate_size,
        "max_position_embeddings": 32768,
        "max_window_layers": qwen2.num_hidden_layers,
        "model_type": "qwen2",
        "num_attention_heads": qwen2.num_attention_heads,
        "num_hidden_layers": qwen2.num_hidden_layers,
        "num_key_value_heads": qwen2.num_key_value_heads,
        "rms_norm_eps": qwen2.rms_norm_eps,
        "rope_theta": qwen2.rope_theta,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": qwen2.vocab_size,
    }


def _generation_config(first_added: int) -> dict[str, Any]:
    return {
        "bos_token_id": first_added,
        "pad_token_id": first_added,
        "do_sample": True,
        "eos_token_id": [first_added + 2, first_added],
        "repetition_penalty": 1.1,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "transformers_version": "4.37.0",
    }


def _tokenizer_config(first_added: int) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first_added + i): {"content": token, **flags} for i, token in enumerate(BASE_SPECIAL_TOKENS)
        },
        "additional_special_tokens": list(BASE_SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": BASE_SPECIAL_TOKENS[2],
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
