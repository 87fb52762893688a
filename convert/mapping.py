"""The one table from tensors of the official files to parameters of the port, and the code that applies it.

A row says which source tensors make one port parameter, and how. In a pattern `#` is an index, `(a|b)` a choice and
`(.*)` anything; every group may be used as `$1`, `$2`, ... in the target. A part is one source file, so a new file
means a new part: rows in `TABLE` and a line in `PORT_ROOT`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain

import numpy as np

from convert.mapping_onnx import ONNX_ROWS
from convert.names import ADAPTER, COUNTERS, shared_prefixes, strip_prefixes
from convert.transforms import (
    CONSTANT,
    CONV,
    CONV_AND_NOTHING,
    FOLD,
    FOLD_EXACTLY,
    IDENTITY,
    TIED,
    UNUSED,
    Shape,
    Transform,
)
from port.config import CosyVoice3Config
from port.files.errors import Refused

# Where each part's parameters live in the port.
PORT_ROOT = {
    "llm": "llm",
    "flow": "flow",
    "hift": "vocoder",
    "speech_tokenizer": "speech_tokenizer",
    "speaker": "speaker",
    "unit": "unit",
}


@dataclass(frozen=True)
class Row:
    part: str
    sources: tuple[str, ...]
    target: str | None  # None: it fills no parameter of the port
    transform: Transform
    witness: str | None = None  # a second source tensor that the transform checks and another row uses
    reason: str = ""  # why it is dropped


@dataclass(frozen=True)
class Step:
    """One row applied to the tensors at hand: `sources` and `witness` are source keys as spelled in the file."""

    row: Row
    sources: tuple[str, ...]
    target: str | None
    witness: str | None = None

    def shape(self, shapes: Mapping[str, Shape]) -> Shape | None:
        """Shape of the port parameter, from the shapes of the sources.

        Raises:
            Refused: the source shapes do not fit the transform.
        """
        found = [tuple(shapes[key]) for key in self._reads]
        try:
            return self.row.transform.shape(*found)
        except ValueError:
            listed = ", ".join(f"{key} {list(shape)}" for key, shape in zip(self._reads, found, strict=True))
            raise Refused(f"{self.row.part}: shapes do not fit '{self.row.transform.name}': {listed}") from None

    def apply(self, tensors: Mapping[str, np.ndarray], config: CosyVoice3Config) -> np.ndarray | None:
        """The port parameter in float32 (C order), None for a tensor that was checked and dropped.

        Raises:
            Refused: values that are not finite, or a check that failed.
        """
        if self.row.transform is UNUSED:
            return None
        arrays = []
        for key in self._reads:
            array = np.asarray(tensors[key])
            if array.dtype.kind != "f":
                raise Refused(f"{self.row.part}: {key} holds {array.dtype}, expected floating point")
            with np.errstate(over="ignore"):  # reported below, by name
                array = array.astype(np.float32, copy=False)
            if not np.isfinite(array).all():
                raise Refused(f"{self.row.part}: {key} holds values that are not finite in float32")
            arrays.append(array)
        self.shape({key: array.shape for key, array in zip(self._reads, arrays, strict=True)})
        try:
            result = self.row.transform.apply(arrays, config)
        except ValueError as error:
            raise Refused(f"{self.row.part}: {self.sources[0]}: {error}") from None
        return None if result is None else np.ascontiguousarray(result)

    @property
    def _reads(self) -> tuple[str, ...]:
        return self.sources + ((self.witness,) if self.witness else ())


@dataclass
class Conversion:
    """Port parameters, and the use of each source key: `used[key]` is its target, or the reason why it was dropped."""

    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)


# ---- the table


def _row(part: str, source: str, target: str | None, transform: Transform = IDENTITY, **details: str) -> Row:
    return Row(part, (source,), target, transform, **details)


def _weight_normed(source: str, target: str, fold: Transform = FOLD, plain: Transform = CONV) -> tuple[Row, ...]:
    """A convolution of hift.pt: new-style or old-style weight norm, or already folded; and its bias."""
    new = (f"{source}.parametrizations.weight.original0", f"{source}.parametrizations.weight.original1")
    return (
        Row("hift", new, f"{target}.weight", fold),
        Row("hift", (f"{source}.weight_g", f"{source}.weight_v"), f"{target}.weight", fold),
        _row("hift", f"{source}.weight", f"{target}.weight", plain),
        _row("hift", f"{source}.bias", f"{target}.bias"),
    )


_QWEN, _PORT_QWEN = "llm.model.model", "llm.qwen2"
_LAYER, _PORT_LAYER = f"{_QWEN}.layers.#", f"{_PORT_QWEN}.layers.$1"
_DIT, _PORT_DIT = "decoder.estimator", "flow.decoder.estimator"
_BLOCK, _PORT_BLOCK = f"{_DIT}.transformer_blocks.#", f"{_PORT_DIT}.transformer_blocks.$1"
_CONV_POS, _PORT_CONV_POS = f"{_DIT}.input_embed.conv_pos_embed", f"{_PORT_DIT}.input_embed.conv_pos_embed"
_ONNX_TRANSFORMS = {"identity": IDENTITY, "conv": CONV}

TABLE: tuple[Row, ...] = (
    # llm.pt
    _row("llm", f"{_QWEN}.embed_tokens.weight", f"{_PORT_QWEN}.embed_tokens.weight"),
    _row("llm", f"{_LAYER}.self_attn.(q_proj|k_proj|v_proj).(weight|bias)", f"{_PORT_LAYER}.self_attn.$2.$3"),
    _row("llm", f"{_LAYER}.self_attn.o_proj.weight", f"{_PORT_LAYER}.self_attn.o_proj.weight"),
    _row("llm", f"{_LAYER}.mlp.(gate_proj|up_proj|down_proj).weight", f"{_PORT_LAYER}.mlp.$2.weight"),
    _row("llm", f"{_LAYER}.(input_layernorm|post_attention_layernorm).weight", f"{_PORT_LAYER}.$2.weight"),
    _row("llm", f"{_QWEN}.norm.weight", f"{_PORT_QWEN}.norm.weight"),
    _row(
        "llm",
        "llm.model.lm_head.weight",
        None,
        TIED,
        witness=f"{_QWEN}.embed_tokens.weight",
        reason="tied to embed_tokens and never used: llm_decoder predicts the speech tokens",
    ),
    _row("llm", "(llm_decoder|speech_embedding).weight", "llm.$1.weight"),
    # flow.pt
    _row("flow", "input_embedding.weight", "flow.input_embedding.weight"),
    _row("flow", "spk_embed_affine_layer.(weight|bias)", "flow.spk_embed_affine_layer.$1"),
    _row("flow", "pre_lookahead_layer.(conv1|conv2).weight", "flow.pre_lookahead_layer.$1.weight", CONV),
    _row("flow", "pre_lookahead_layer.(conv1|conv2).bias", "flow.pre_lookahead_layer.$1.bias"),
    _row("flow", f"{_DIT}.time_embed.time_mlp.0.(weight|bias)", f"{_PORT_DIT}.time_embed.linear_1.$1"),
    _row("flow", f"{_DIT}.time_embed.time_mlp.2.(weight|bias)", f"{_PORT_DIT}.time_embed.linear_2.$1"),
    _row("flow", f"{_DIT}.input_embed.proj.(weight|bias)", f"{_PORT_DIT}.input_embed.proj.$1"),
    _row("flow", f"{_CONV_POS}.(conv1|conv2).0.weight", f"{_PORT_CONV_POS}.$1.weight", CONV),
    _row("flow", f"{_CONV_POS}.(conv1|conv2).0.bias", f"{_PORT_CONV_POS}.$1.bias"),
    _row("flow", f"{_DIT}.rotary_embed.inv_freq", None, CONSTANT, reason="a formula that the port computes itself"),
    _row("flow", f"{_BLOCK}.attn_norm.linear.(weight|bias)", f"{_PORT_BLOCK}.attn_norm.linear.$2"),
    _row("flow", f"{_BLOCK}.attn.(to_q|to_k|to_v).(weight|bias)", f"{_PORT_BLOCK}.attn.$2.$3"),
    _row("flow", f"{_BLOCK}.attn.to_out.0.(weight|bias)", f"{_PORT_BLOCK}.attn.to_out.$2"),
    _row("flow", f"{_BLOCK}.ff.ff.0.0.(weight|bias)", f"{_PORT_BLOCK}.ff.linear_1.$2"),
    _row("flow", f"{_BLOCK}.ff.ff.2.(weight|bias)", f"{_PORT_BLOCK}.ff.linear_2.$2"),
    _row("flow", f"{_DIT}.norm_out.linear.(weight|bias)", f"{_PORT_DIT}.norm_out.linear.$1"),
    _row("flow", f"{_DIT}.proj_out.(weight|bias)", f"{_PORT_DIT}.proj_out.$1"),
    # hift.pt
    *_weight_normed("(conv_pre|conv_post)", "vocoder.$1"),
    *_weight_normed("ups.#", "vocoder.ups.$1"),
    *_weight_normed("(resblocks|source_resblocks).#.(convs1|convs2).#", "vocoder.$1.$2.$3.$4"),
    # The original's nn.Sequential has activations at the odd indices.
    *chain.from_iterable(
        _weight_normed(
            f"f0_predictor.condnet.{2 * i}", f"vocoder.f0_predictor.condnet.{i}", FOLD_EXACTLY, CONV_AND_NOTHING
        )
        for i in range(5)
    ),
    _row("hift", "(resblocks|source_resblocks).#.(activations1|activations2).#.alpha", "vocoder.$1.$2.$3.$4.alpha"),
    _row("hift", "source_downs.#.weight", "vocoder.source_downs.$1.weight", CONV),
    _row("hift", "source_downs.#.bias", "vocoder.source_downs.$1.bias"),
    _row("hift", "m_source.l_linear.(weight|bias)", "vocoder.m_source.l_linear.$1"),
    _row("hift", "f0_predictor.classifier.(weight|bias)", "vocoder.f0_predictor.classifier.$1"),
    _row("hift", "discriminator.(.*)", None, UNUSED, reason="the discriminator, used only in training"),
    # Modules of the original without weights in the official files; parity tests make their own.
    _row("unit", "(.*)(gamma|beta)", "unit.$1$2"),
    _row("unit", "(.*)dwconv.weight", "unit.$1dwconv.weight", CONV),
    _row("unit", "(.*)dwconv.bias", "unit.$1dwconv.bias"),
    _row("unit", "(.*)(norm|pwconv1|pwconv2).(weight|bias)", "unit.$1$2.$3"),
    # speech_tokenizer_v3.onnx, campplus.onnx
    *(_row(part, source, target, _ONNX_TRANSFORMS[kind]) for part, source, target, kind in ONNX_ROWS),
)


# ---- following the table


@lru_cache(maxsize=4096)
def _regex(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"(#|\([^)]*\))", pattern)
    written = (r"(\d+)" if p == "#" else p.replace("#", r"\d+") if p.startswith("(") else re.escape(p) for p in pieces)
    return re.compile("".join(written))


@lru_cache(maxsize=16)
def _patterns(part: str) -> tuple[tuple[re.Pattern[str], Row, int], ...]:
    return tuple(
        (_regex(pattern), row, index) for row in TABLE if row.part == part for index, pattern in enumerate(row.sources)
    )


def plan(part: str, keys: Iterable[str]) -> list[Step]:
    """Match source keys against the table; `epoch` and `step` are skipped. A subset of a file's keys is allowed.

    Returns:
        Steps in the order of their targets, dropped tensors first.

    Raises:
        Refused: a key without a row, half of a pair without the other half, or a parameter filled twice.
    """
    if part not in PORT_ROOT:
        raise Refused(f"unknown part {part!r}; known parts: {', '.join(PORT_ROOT)}")
    spelled: dict[str, str] = {}
    for key in keys:
        if key in COUNTERS:
            continue
        plain = strip_prefixes(part, key)
        if plain in spelled:
            raise Refused(f"{part}: {key} and {spelled[plain]} are the same tensor under two names")
        spelled[plain] = key
    groups: dict[tuple[Row, tuple[str, ...]], list[str | None]] = {}
    for plain in spelled:
        row, index, captured = _find(part, plain, spelled)
        groups.setdefault((row, captured), [None] * len(row.sources))[index] = plain
    steps: list[Step] = []
    filled: dict[str, str] = {}
    for (row, captured), members in groups.items():
        for member, pattern in zip(members, row.sources, strict=True):
            if member is None:
                partner = next(m for m in members if m)
                raise Refused(f"{part}: {spelled[partner]} lacks its partner {_fill(pattern, captured)}")
        if row.witness and row.witness not in spelled:
            raise Refused(f"{part}: {spelled[members[0] or '']} is tied to {row.witness}, which is missing")
        target = None if row.target is None else _filled(row.target, captured)
        sources = tuple(spelled[m] for m in members if m)
        if target is not None:
            if target in filled:
                raise Refused(f"{part}: {target} is filled twice, by {filled[target]} and by {sources[0]}")
            filled[target] = sources[0]
        steps.append(Step(row, sources, target, spelled[row.witness] if row.witness else None))
    return sorted(steps, key=lambda step: step.target or "")


def convert(part: str, tensors: Mapping[str, np.ndarray], config: CosyVoice3Config) -> Conversion:
    """Convert source tensors to port parameters in float32.

    Args:
        part: `llm`, `flow`, `hift`, or `unit` for modules without weights in the official files.
        tensors: source key to array; all of a file or any subset of it, under full keys. Values are read one at a time.
        config: of the model, for constants that are checked and not stored.

    Raises:
        Refused: see `plan` and `Step.apply`.
    """
    done = Conversion()
    for step in plan(part, tensors):
        result = step.apply(tensors, config)
        if step.target is not None and result is not None:
            done.tensors[step.target] = result
        done.used |= dict.fromkeys(step.sources, step.target or step.row.reason)
    return done


def _find(part: str, plain: str, spelled: Mapping[str, str]) -> tuple[Row, int, tuple[str, ...]]:
    if found := _known(part, plain):
        return found
    if ADAPTER.search(plain):
        what = f"{part}: {spelled[plain]!r} is of an adapter"
        raise Refused(f"{what}; merge the adapter first (peft: merge_and_unload) and save again")
    for prefix in shared_prefixes(spelled):
        if _known(part, plain.removeprefix(prefix)):
            raise Refused(f"{part}: every name begins with {prefix!r}; save the tensors under their names without it")
    raise Refused(f"{part}: unknown tensor {spelled[plain]!r}; the model has no place for it")


def _known(part: str, plain: str) -> tuple[Row, int, tuple[str, ...]] | None:
    for regex, row, index in _patterns(part):
        if match := regex.fullmatch(plain):
            return row, index, match.groups()
    return None


def _filled(target: str, captured: tuple[str, ...]) -> str:
    """A target with what its pattern captured in the place of `$1`, `$2`."""
    return re.sub(r"\$(\d)", lambda match: captured[int(match[1]) - 1], target)


def _fill(pattern: str, captured: tuple[str, ...]) -> str:
    found = iter(captured)
    return re.sub(r"#|\([^)]*\)", lambda _: next(found), pattern)
