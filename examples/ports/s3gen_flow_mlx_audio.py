"""The flow of Chatterbox's s3gen in mlx_audio against its PyTorch original: encoder, decoder, three steps of Euler."""

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx_audio.tts.models.chatterbox.s3gen import s3gen

from mlx_parity import Pair, Subject, live_weights, mlx_module, torch_module

FOLDERS = "chatterbox.models.s3gen", "mlx_audio.tts.models.chatterbox.s3gen"
FOLDER = Path(find_spec("chatterbox").origin).parents[1]
for name in ("chatterbox", "chatterbox.models", "chatterbox.models.s3gen"):  # without what they import to read files
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(FOLDER / name.replace(".", "/"))]
# An assertion of it refuses the float64 of the truth.
vars(import_module(f"{FOLDERS[0]}.decoder"))["mask_to_bias"] = lambda mask, dtype: (1 - mask.to(dtype)) * -1e10
BANDS, TOKENS, WIDTH = 80, 10, 512  # the original has this width of the encoder in it
ENCODER: dict[str, Any] = dict(input_size=WIDTH, output_size=WIDTH, attention_heads=8, linear_units=32, num_blocks=1)
ENCODER |= dict(pos_enc_layer_type="rel_pos_espnet", selfattention_layer_type="rel_selfattn", use_cnn_module=False)
DECODER = dict(channels=[16], attention_head_dim=8, num_heads=2, n_blocks=1, num_mid_blocks=2)
SPELLED = (
    r"(down|mid|up)_blocks.(\d+)=\1_blocks_\2 (blocks_\d+).0=\1.resnet (blocks_\d+).1.(\d+)=\1.transformer_\2 "
    r"(down|up)_blocks_0.2=\1_blocks_0.\1sample block.0=conv block.2=norm mlp.1=mlp_linear ff.net.2=ff.layers.1 "
    r"attn1.to_out.0=attn.out_proj attn1.to_q=attn.query_proj attn1.to_k=attn.key_proj attn1.to_v=attn.value_proj "
    r"attn1=attn ff.net.0.proj=ff.layers.0 encoders.(\d)=encoders_\1 embed.out.0=embed.linear embed.out.1=embed.norm "
    r"estimator$=-"
)


def names(name):
    for pair in SPELLED.split():
        name = re.sub(*pair.split("="), name)
    return name


def both(place, **how):
    module, _, kind = place.rpartition(".")
    return [getattr(import_module(f"{folder}.{module}"), kind)(**how) for folder in FOLDERS]


def pair(name, rng, sides, call, *x):
    """The same weights in both, as the port reads them."""
    reference, port = sides
    state = live_weights({key: value.numpy() for key, value in reference.state_dict().items()}, rng)
    reference.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    holder = mlx_module(call, part=port)
    weights = s3gen.S3Token2Wav.sanitize(holder, {f"part.{key}": mx.array(value) for key, value in state.items()})
    holder.load_weights([*weights.items()], strict=False)
    last = ["*pre_look*conv*", "*up_layer.conv", "*final_proj", "*res_conv"]
    return Pair(name, torch_module(call, part=reference), holder, x, names=names, channels_last=last)


def subject(seed):
    rng = np.random.default_rng(seed)
    encoder = both("transformer.upsample_encoder.UpsampleConformerEncoder", **ENCODER)
    for embed in (encoder[0].embed, encoder[0].up_embed):
        embed.pos_enc.pe = None  # made anew by each run, so that the truth has it in float64
    flow = both("flow_matching.CausalConditionalCFM")
    for side, estimator in zip(flow, both("decoder.ConditionalDecoder", **DECODER), strict=True):
        side.estimator = estimator
    size, times = (1, BANDS, 2 * TOKENS), 1 - np.cos(np.linspace(0, np.pi / 2, 4))
    noise, mu, cond, voice, text = (rng.standard_normal(s) for s in (size, size, size, (1, BANDS), (2, TOKENS, WIDTH)))
    mask = np.arange(2 * TOKENS)[None, None] < 2 * TOKENS - 2.0
    parts = [
        pair("encoder", rng, encoder, lambda s, *x: s.part(*x), text, np.array([TOKENS, TOKENS - 3])),
        pair("decoder", rng, flow, lambda s, *x: s.part.solve_euler(*x), noise, times, mu, 1.0 * mask, voice, cond),
    ]
    return Subject("mlx_audio s3gen flow", "chatterbox-tts flow", parts, packages=["mlx-audio", "chatterbox-tts"])
