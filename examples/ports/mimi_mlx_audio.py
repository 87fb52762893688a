"""Mimi of mlx_audio against Mimi of transformers: encoder, quantizer, decoder; whole, and step by step in a stream."""

import re
from functools import partialmethod
from unittest.mock import patch

import mlx.core as mx
import numpy as np
import torch
from mlx_audio.codec.models.mimi import mimi
from transformers import MimiConfig, MimiModel

from mlx_parity import Finding, Pair, Subject, live_weights

WIDTH, HEADS, BOOKS, BOOK, FRAMES, FRAME, RATIOS = 32, 8, 4, 64, 4, 96, [4, 3, 2, 2]  # FRAME in samples
SIZES = dict(hidden_size=WIDTH, num_filters=4, upsampling_ratios=RATIOS, upsample_groups=WIDTH, num_hidden_layers=1)
SIZES |= dict(vector_quantization_hidden_dimension=16, codebook_dim=16, codebook_size=BOOK, num_quantizers=BOOKS)
SIZES |= dict(intermediate_size=64, sliding_window=6, frame_rate=24000 / FRAME)
SPELLED = (  # in the checkpoint that the port loads
    r"input_layernorm=norm1 post_attention_layernorm=norm2 self_attn_layer_scale=layer_scale_1 o_proj=out_proj "
    r"mlp_layer_scale=layer_scale_2 coder_transformer=coder_transformer.transformer fc=linear mlp.(.*weight)=\1 "
    r"mlp=gating semantic_residual_vector_quantizer=rvq_first acoustic_residual_vector_quantizer=rvq_rest "
    r"embed_sum=embedding_sum (rvq_\w+).layers=\1.vq.layers coder.layers=coder.model block.[02]$=- "
    r"(decoder.model.(?:2|5|8|11)|upsample).conv=\1.convtr upsample=upsample.convtr "
    r"downsample=downsample.conv \.(conv|convtr)\.=.\1.\1."
)


def spelled(name):
    for pair in SPELLED.split():
        name = re.sub(*pair.split("="), name)
    return name


def names(name):
    """What the port's loader makes of a name."""
    found = {spelled(name) + ".": mx.zeros(1)}
    with patch.object(mx, "load", lambda _: found), patch.object(mimi.Mimi, "load_weights") as load:
        mimi.Mimi.load_pytorch_weights(mimi.Mimi, "")
    return load.call_args[0][0][0][0][:-1]


def models(seed, method, call):
    reference, weights = type("Mimi", (MimiModel,), {"forward": getattr(MimiModel, method)})(MimiConfig(**SIZES)), {}
    state = live_weights({k: v.numpy() for k, v in reference.state_dict().items()}, np.random.default_rng(seed))
    state |= {key: 0.1 + abs(value) for key, value in state.items() if "cluster_usage" in key}  # they are counts
    reference.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    for key, value in state.items():
        if "q_proj" in key:  # rotary pairs are halves there, neighbours here
            q, k, v = (state[key.replace("q_proj", f"{which}_proj")].reshape(HEADS, 2, -1, WIDTH) for which in "qkv")
            joined = np.stack([q.swapaxes(1, 2).reshape(v.shape), k.swapaxes(1, 2).reshape(v.shape), v])
            weights[spelled(key).replace("q_proj.", "in_proj_")] = mx.array(joined.reshape(-1, WIDTH))
        elif not re.search("[kv]_proj", key):
            weights[spelled(key)] = mx.array(value)
    config = mimi.mimi_202407(BOOKS)
    vars(config).update(frame_rate=24000 / FRAME, quantizer_bins=BOOK, quantizer_dim=16)
    vars(config.seanet).update(dimension=WIDTH, nfilters=4, ratios=RATIOS)
    vars(config.transformer).update(d_model=WIDTH, num_layers=1, dim_feedforward=64, context=6)
    port = type("Mimi", (mimi.Mimi,), {"__call__": call})(config)
    with patch.object(mx, "load", lambda _: weights):
        port.load_pytorch_weights("")
    return reference, port


def stepped(self, x, step):
    """The second stream, a code at a time, after another and a reset."""
    for stream in (x[::-1], x):
        self.reset_state()
        found = [step(self, part) for part in mx.split(stream, FRAMES, axis=-1)]
    return mx.concatenate(found, axis=-1)


GELU = Finding(
    "GELU by tanh where the original has erf",
    mimi.mimi_202407,
    line="gating=False,",
    fix='gating=False, gelu="erf",',
    notice="The blocks of both transformers are off: now and then another code; sound off by up to 1e-4 of its level.",
)
RESET = Finding(
    "A reset keeps the last stream's samples in two convolutions",
    mimi.Mimi.reset_state,
    line="self.decoder.reset_state()",
    fix="self.decoder.reset_state(); self.downsample.reset_state(); self.upsample.reset_state()",
    notice="The next stream begins with other codes, and its sound with an echo of the last one's end.",
)


def subject(seed):
    rng, parts = np.random.default_rng(seed), []
    given = dict(encode=rng.standard_normal((2, 1, FRAMES * FRAME)), decode=rng.integers(0, BOOK, (2, BOOKS, FRAMES)))
    for name, x in given.items():
        steps = partialmethod(stepped, step=getattr(mimi.Mimi, f"{name}_step"))
        parts += [Pair(name, *models(seed, name, getattr(mimi.Mimi, name)), x, names=names)]
        parts += [Pair(f"{name} by steps", *models(seed, name, steps), x, names=lambda _: "")]
    return Subject("mlx_audio Mimi", "transformers MimiModel", parts, [GELU, RESET], ["mlx-audio", "transformers"])
