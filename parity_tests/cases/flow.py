"""Isolated cases of the flow decoder, smallest parts first: the first failure is the smallest wrong part."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlx_parity.case import Case, normal, tokens, uniform, values
from parity_tests.cases import angles, case, cases_of, chunked, valid

ATTENTION = dict(dim=48, heads=3, dim_head=16)
DIT = dict(
    dim=48, depth=2, heads=3, dim_head=16, mel_dim=12, mu_dim=16, spk_dim=10, out_channels=12, static_chunk_size=8
)
# One width for mel, features and speaker, as in the model.
SQUARE = dict(DIT, mu_dim=12, spk_dim=12)
FLOW: dict[str, Any] = dict(
    dit=SQUARE, input_size=12, output_size=12, spk_embed_dim=24, vocab_size=61, pre_lookahead_channels=20
)
WIDE = dict(DIT, mel_dim=80, mu_dim=80, spk_dim=80, out_channels=80)
FULL_WIDTH = dict(FLOW, dit=WIDE, input_size=80, output_size=80)
CFM: dict[str, Any] = dict(
    mu=normal(1, 12, 27), mask=valid(27, 27), spks=normal(1, 12), cond=normal(1, 12, 27), noise=normal(1, 12, 27)
)
PADDED: dict[str, Any] = dict(
    x=normal(2, 12, 23),
    mask=valid(23, 23, 17),
    mu=normal(2, 16, 23),
    t=values(0.31, 0.87),
    spks=normal(2, 10),
    cond=normal(2, 12, 23),
)
PROMPT: dict[str, Any] = dict(
    token=tokens(1, 17, high=61),
    prompt_token=tokens(1, 6, high=61),
    prompt_feat=normal(1, 12, 12),
    embedding=normal(1, 24),
    noise=normal(1, 12, 46),
)
NO_PROMPT: dict[str, Any] = dict(
    token=np.array([[5, -1, 60, 7, 33, 8, 9, 12]], np.int32),  # -1 is read as 0, as in the original
    prompt_token=np.zeros((1, 0), np.int32),
    prompt_feat=np.zeros((1, 0, 12), np.float32),
    embedding=normal(1, 24),
    noise=normal(1, 12, 16),
)
SEPARATE: dict[str, Any] = dict(guidance="separate")
BLOCK = dict(ATTENTION, ff_mult=2)
SAME = "adds the same to all scores of a query, which softmax ignores"
X, ROPE, FRAMES = normal(2, 23, 48), angles(23, 16), valid(23, 23, 17)[:, 0] > 0
LAST_ROW = chunked(23, 8, 23, 17)
LAST_ROW[0, 0, -1, 4:9] = False  # the original reads its frame mask from the last query's row
BLIND = chunked(23, 8, 23, 17)
BLIND[1, 0, 5] = False  # torch gives zeros to a query that may see nothing


layer = cases_of("flow", "flow.layers")


def _dit(name: str, streaming: bool, **inputs: Any) -> Case:
    return case(f"flow.dit.{name}", "flow.dit.DiT", DIT, dict(streaming=streaming), **{**PADDED, **inputs})


def _cfm(name: str, inputs: dict[str, Any] = CFM, **call: Any) -> Case:
    return case(f"flow.cfm.{name}", "flow.matching.CausalConditionalCFM", FLOW, call, **inputs)


def _velocity(name: str, **call: Any) -> Case:
    inputs = {**CFM, "x": CFM["noise"], "t": np.full((), 0.4, np.float32)}
    del inputs["noise"]
    return case(f"flow.velocity.{name}", "flow.matching.CausalConditionalCFM.velocity", FLOW, call, **inputs)


def _decoder(name: str, inputs: dict[str, Any], **call: Any) -> Case:
    return case(f"flow.decoder.{name}", "flow.decoder.CausalMaskedDiffWithDiT.inference", FLOW, call, **inputs)


def _mask(name: str, path: str, call: dict[str, Any] | None = None, **inputs: Any) -> Case:
    return case(f"flow.masks.{name}", f"flow.masks.{path}", None, call, **inputs)


def _look(name: str, batch: int, **inputs: Any) -> Case:
    sizes = dict(in_channels=12, channels=20, pre_lookahead_len=3)
    return case(
        f"flow.lookahead.{name}", "flow.lookahead.PreLookaheadLayer", sizes, inputs=normal(batch, 37, 12), **inputs
    )


CASES = (
    _mask("pad", "make_pad_mask", dict(max_len=9), lengths=np.array([7, 3, 9, 1])),
    _mask("pad.auto", "make_pad_mask", lengths=np.array([7, 3])),
    *(
        _mask(f"chunk.{size}.{chunk}", "subsequent_chunk_mask", dict(size=size, chunk_size=chunk))
        for size, chunk in ((1, 1), (7, 8), (8, 8), (23, 8), (49, 50), (101, 50))
    ),
    *(
        _mask(f"optional.{chunk}", "add_optional_chunk_mask", dict(static_chunk_size=chunk), masks=valid(23, 23, 9) > 0)
        for chunk in (0, 1, 8, 50)
    ),
    _mask("optional.blind", "add_optional_chunk_mask", dict(static_chunk_size=8), masks=valid(23, 23, 0) > 0),
    *(
        case(f"flow.activation.{name}", f"fast.arithmetic.{name}", x=normal(2, 23, 48, scale=3))
        for name in ("exp2", "silu", "mish", "gelu_tanh")
    ),
    case(
        "flow.activation.attention",
        "fast.attention.attention_in_blocks",
        None,
        dict(scale=0.25),
        q=normal(2, 3, 23, 16),
        k=normal(2, 3, 23, 16),
        v=normal(2, 3, 23, 16),
    ),
    layer("sinus", "SinusPositionEmbedding", dict(dim=32), x=values(0.0, 0.0123, 0.5, 0.98)),
    layer("time_embed", "TimestepEmbedding", dict(dim=48), timestep=uniform(5)),
    layer("rotary.angles", "RotaryEmbedding", dict(dim=16), dict(seq_len=77)),
    layer("rotary.angles.offset", "RotaryEmbedding", dict(dim=16), dict(seq_len=7, offset=250)),
    layer("rotary", "apply_rotary_pos_emb", t=X, rope=ROPE),
    layer("conv_pos_embed", "CausalConvPositionEmbedding", dict(dim=48), x=X),
    layer("conv_pos_embed.masked", "CausalConvPositionEmbedding", dict(dim=48), x=X, mask=FRAMES),
    layer("conv_pos_embed.one", "CausalConvPositionEmbedding", dict(dim=32), x=normal(1, 1, 32)),
    layer("adaln_zero", "AdaLayerNormZero", dict(dim=48), x=X, emb=normal(2, 48)),
    layer("adaln_final", "AdaLayerNormZero_Final", dict(dim=48), x=X, emb=normal(2, 48)),
    *(
        layer(f"feed_forward.{k}", "FeedForward", dict(dim=48, mult=2, approximate=k), x=normal(2, 23, 48, scale=2))
        for k in ("none", "tanh")
    ),
    layer("attention", "Attention", ATTENTION, x=X, rope=ROPE),
    layer("attention.no_rope", "Attention", ATTENTION, dead=dict.fromkeys(["to_k.bias"], SAME), x=normal(1, 5, 48)),
    layer("attention.padded", "Attention", ATTENTION, x=X, mask=FRAMES, rope=ROPE),
    layer("attention.chunked", "Attention", ATTENTION, x=X, mask=chunked(23, 8, 23, 17), rope=ROPE),
    layer("attention.full", "Attention", ATTENTION, x=X, mask=chunked(23, 23, 23, 17), rope=ROPE),
    layer("attention.last_row", "Attention", ATTENTION, x=X, mask=LAST_ROW, rope=ROPE),
    layer("attention.blind", "Attention", ATTENTION, x=X, mask=BLIND, rope=ROPE),
    layer("block.chunked", "DiTBlock", BLOCK, x=X, t=normal(2, 48), mask=chunked(23, 8, 23, 17), rope=ROPE),
    layer("block.full", "DiTBlock", BLOCK, x=X, t=normal(2, 48), mask=chunked(23, 23, 23, 23), rope=ROPE),
    case(
        "flow.input_embed",
        "flow.dit.InputEmbedding",
        dict(mel_dim=12, text_dim=16, out_dim=48, spk_dim=10),
        x=normal(2, 23, 12),
        cond=normal(2, 23, 12),
        text_embed=normal(2, 23, 16),
        spks=normal(2, 10),
    ),
    _dit("full", False),
    _dit("chunked", True),
    _dit("all_valid", True, mask=valid(23, 23, 23)),
    _dit("one_time", True, t=np.float32(0.4) * np.ones((), np.float32)),
    _dit(
        "exact_chunks", True, x=normal(2, 12, 24), mask=valid(24, 24, 16), mu=normal(2, 16, 24), cond=normal(2, 12, 24)
    ),
    _look("end", 2),
    _look("context", 2, context=normal(2, 3, 12)),
    _look("one", 1),
    *(
        case(f"flow.schedule.{n}", "flow.matching.cosine_schedule", None, dict(n_timesteps=n))
        for n in (1, 4, 6, 10, 25)
    ),
    _velocity("full", streaming=False),
    _velocity("chunked", streaming=True),
    _velocity("separate", streaming=True, **SEPARATE),
    _cfm("full", streaming=False),
    _cfm("chunked", streaming=True),
    _cfm("full.separate", streaming=False, **SEPARATE),
    _cfm("chunked.separate", streaming=True, **SEPARATE),
    _cfm("steps.4", streaming=True, n_timesteps=4),
    _cfm("temperature", streaming=False, temperature=0.7, n_timesteps=2),
    _cfm("longer_noise", {**CFM, "noise": normal(1, 12, 33)}, streaming=False, n_timesteps=2),
    *(
        _decoder(
            f"prompt.{'chunked' if stream else 'full'}.{'end' if final else 'more'}",
            PROMPT,
            streaming=stream,
            finalize=final,
        )
        for stream in (False, True)
        for final in (False, True)
    ),
    _decoder("prompt.separate", PROMPT, streaming=True, finalize=True, **SEPARATE),
    _decoder("no_prompt", NO_PROMPT, streaming=False, finalize=True),
    # Voice conversion does not cut the prompt to whole tokens: one frame more than two per token.
    _decoder("longer_prompt", {**PROMPT, "prompt_feat": normal(1, 13, 12)}, streaming=False, finalize=True),
    case(  # without `noise` both sides take the original's, which has the official 80 channels
        "flow.decoder.fixed_noise",
        "flow.decoder.CausalMaskedDiffWithDiT.inference",
        FULL_WIDTH,
        dict(streaming=True, finalize=True),
        token=tokens(1, 7, high=61),
        prompt_token=tokens(1, 3, high=61),
        prompt_feat=normal(1, 6, 80),
        embedding=normal(1, 24),
    ),
    # Last, what the model never builds: these must not fail before a part that it uses.
    layer("grn", "GRN", dict(dim=96), x=normal(2, 23, 96)),
    layer("grn.quiet", "GRN", dict(dim=96), x=normal(2, 23, 96, scale=0.01)),
    *(layer(f"convnext.{n}", "ConvNeXtV2Block", dict(dim=48, intermediate_dim=96, dilation=n), x=X) for n in (1, 2)),
)
