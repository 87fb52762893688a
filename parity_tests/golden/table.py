"""How a golden file is replayed: by the part of the original that it names, and the names of its tensors.

By default the part of the same name is called with the file's inputs, and its results are the file's outputs. `TABLE`
lists the exceptions. Files that are no case have functions in functions.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_parity.record import Recorded, RecordError
from parity_tests.parts import PARTS


@dataclass(frozen=True)
class Tap:
    """A tensor inside the call: argument or result `tensor` of the `index`-th call of a part (of sub-module `name`).

    The group of a pattern, matched to the golden name, gives the index, or fills `{}` in `name`.
    """

    path: str
    tensor: str
    name: str | None = None
    index: int = 0
    every: bool = False  # all calls, stacked along a new first axis
    then: str | None = None  # a result of the outer call, appended to them
    step: str = ""  # config key of a stride: file and port have every so-many-th entry of the second axis

    def at(self, found: str) -> Tap:
        if self.name and "{}" in self.name:
            return replace(self, name=self.name.format(found))
        return replace(self, index=int(found))


Outputs = dict[str, str | Tap]  # golden output -> result or tap


@dataclass(frozen=True)
class Run:
    """One call of a part, or one for each output if `call` is given.

    Args:
        path: the part that is called.
        outputs: golden output, as a pattern -> result or tap; the part's own results if empty.
        inputs: golden input, as a pattern -> argument if the names differ; `out.NAME` is a recorded result.
        without: patterns of golden inputs that this call does not get.
        dead: as for `Case`.
        call: makes the arguments that are no tensors, from the file and the match of an output; they replace the
            file's config and call.
    """

    path: str
    outputs: Mapping[str, str | Tap] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    dead: Mapping[str, str] = field(default_factory=dict)
    call: Callable[[Recorded, re.Match[str]], Mapping[str, Any]] | None = None

    def calls(self, file: Recorded) -> Iterator[tuple[Mapping[str, Any] | None, Outputs]]:
        """Each call: its arguments as made by `call`, and the file's outputs that it gives with their places."""
        outputs = self.outputs or {name: name for name in PARTS[self.path].outputs}
        found: Outputs = {}
        for name in file.out:
            match, place = next(((m, p) for k, p in outputs.items() if (m := re.fullmatch(k, name))), (None, ""))
            if match and self.call:
                yield self.call(file, match), {name: place}
            elif match:
                found[name] = place.at(match[1]) if isinstance(place, Tap) and match.groups() else place
        if found:
            yield None, found

    def argument(self, name: str) -> str | None:
        """The argument name of a golden input in this call; None if the call does not get it."""
        if found := next((given for like, given in self.inputs.items() if re.fullmatch(like, name)), None):
            return found
        return None if name.startswith("out.") or any(re.fullmatch(like, name) for like in self.without) else name


_CFM = "flow.matching.CausalConditionalCFM"
_VELOCITY = f"{_CFM}.velocity"
_FLOW = "flow.decoder.CausalMaskedDiffWithDiT.inference"
_HIFT = "vocoder.generator.CausalHiFTGenerator"
_CONV = "vocoder.convolution.CausalConv1d"
_F0 = "vocoder.f0.CausalConvRNNF0Predictor"
_SINES = "vocoder.source.SineGen2"
_STEPS: Outputs = {name: Tap(_VELOCITY, name, every=True) for name in ("v_cond", "v_uncond", "t")}
_STEPS |= {"states": Tap(_VELOCITY, "x", every=True, then="y")}
_CONDITIONS: Outputs = {name: Tap(_CFM, name) for name in ("spks", "mu", "cond")}
_CONDITIONS |= {"prelookahead": Tap("flow.lookahead.PreLookaheadLayer", "y")}
_UNIT: Outputs = {"sine_unit": Tap(f"{_SINES}._f02sine", "sines", step="upsample_scale")}
_CONVOLUTIONS: Outputs = {
    r"(conv_pre|conv_post)": Tap(_CONV, "y", "{}"),
    r"up(\d+)": Tap(f"{_CONV}Upsample", "y", "ups.{}"),
}
_CHUNKED = "flow.masks.add_optional_chunk_mask"
_CHUNK_MASKS: Outputs = {
    r"chunk_mask_zero_len(?:_c(\d+))?": "mask",
    r"mask_zero_len_mutated_by_c(\d+)": Tap(_CHUNKED, "masks"),
}
_SOURCE = dict.fromkeys(("f0_predictor.*", "m_source.*"), "makes the source, which is given here")


def _rates(file: Recorded, _: re.Match[str]) -> dict[str, Any]:
    """The two rates in `torchaudio.transforms.Resample(24000,16000)`."""
    rates = re.search(r"Resample\(\s*(?:orig_freq=)?(\d+)\s*,\s*(?:new_freq=)?(\d+)", file.upstream)
    if rates is None:
        raise RecordError(f"upstream {file.upstream!r} does not say the rates of Resample")
    return {"orig_freq": int(rates[1]), "new_freq": int(rates[2])}


def _energies(file: Recorded, name: re.Match[str]) -> dict[str, Any]:
    sizes = {k: file.config[k] for k in ("num_mel_bins", "sample_frequency") if k in file.config}
    return sizes | {"subtract_mean": name[0] == "fbank_norm"}


def _filters(file: Recorded, _: re.Match[str]) -> dict[str, Any]:
    sizes, rate = file.config, file.config["sampling_rate"]
    top = rate / 2 if sizes["fmax"] is None else float(sizes["fmax"])
    given = {k: sizes[k] for k in ("n_fft", "num_mels")}
    return {"sampling_rate": rate, **given, "fmin": float(sizes["fmin"]), "fmax": top}


def _width(file: Recorded, name: re.Match[str]) -> dict[str, Any]:
    return {"max_len": 0 if name[1] else file.config["n"]}


def _chunks(file: Recorded, name: re.Match[str]) -> dict[str, Any]:
    left = {"num_left_chunks": int(name[2])} if name[2] else {}
    return {"size": file.config["n"], "chunk_size": int(name[1]), **left}


def _in_chunks(file: Recorded, name: re.Match[str]) -> dict[str, Any]:
    return {"static_chunk_size": file.config["chunk"] if name[1] is None else int(name[1])}


# By the end of the original's path; what is not here is replayed by the part of that name.
TABLE: dict[str, tuple[Run, ...]] = {
    "SinusPositionEmbedding": (Run("flow.layers.SinusPositionEmbedding", {"emb": "y"}, {"t": "x"}),),
    "TimestepEmbedding": (Run("flow.layers.TimestepEmbedding", {"emb": "y"}, {"t": "timestep"}),),
    "Attention": (Run("flow.layers.Attention", inputs={"freqs": "rope"}),),
    "DiTBlock": (Run("flow.layers.DiTBlock", inputs={"freqs": "rope"}),),
    "DiT": (Run("flow.dit.DiT", {"y": "y", r"block(\d+)": Tap("flow.layers.DiTBlock", "y")}),),
    "CausalConditionalCFM.forward": (Run(_CFM, {"y": "y", **_STEPS}),),
    "CausalMaskedDiffWithDiT.inference": (Run(_FLOW, {"feat": "feat", **_CONDITIONS}),),
    **{
        f"CausalConv1d{kind}": (
            Run(f"{_CONV}{kind}", without=("cache",)),
            Run(f"{_CONV}{kind}", {"y_cache": "y"}),
        )
        for kind in ("", "DownSample", "Upsample")
    },
    "utils.mask": (
        Run("flow.masks.make_pad_mask", {r"pad_mask(_auto)?": "mask"}, {}, ("mask.*",), call=_width),
        Run(
            "flow.masks.subsequent_chunk_mask",
            {r"subsequent_chunk_mask_c(\d+)(?:_left(\d+))?": "mask"},
            without=("lengths", "mask.*"),
            call=_chunks,
        ),
        Run(_CHUNKED, {r"chunk_mask_c(\d+)": "mask"}, {"mask": "masks"}, ("lengths", "mask.*"), call=_in_chunks),
        Run(_CHUNKED, _CHUNK_MASKS, {"mask_zero_len": "masks"}, ("lengths", "mask"), call=_in_chunks),
    ),
    "mel_spectrogram": (
        Run("frontend.audio.mel_spectrogram"),
        Run("frontend.audio.mel_filterbank", {"mel_basis": "basis"}, without=("y",), call=_filters),
    ),
    **{
        name: (
            Run("frontend.audio.resample", {r"y\d+": "y"}, {r"y\d+": "waveform"}, call=_rates),
            Run("frontend.audio.fbank", {"fbank(_norm)?": "fbank"}, {wave: "waveform"}, (".*",), call=_energies),
        )
        for name, wave in (("Resample", r"out\.y\d+"), ("fbank", "[^.]+"))
    },
    "SineGen2": (Run(_SINES, {"y": "y", "uv": "uv", **_UNIT}),),
    "CausalHiFTGenerator._stft": (Run("vocoder.stft.stft"),),
    "CausalHiFTGenerator._istft": (Run("vocoder.stft.istft"),),
    "CausalHiFTGenerator.decode": (Run(f"{_HIFT}.decode", {"wav": "wav", **_CONVOLUTIONS}, dead=_SOURCE),),
    "CausalHiFTGenerator.inference": (
        Run(f"{_HIFT}.inference", {"wav": "wav", "s": "s", "f0": Tap(_F0, "f0")}),
        Run(f"{_HIFT}.decode", {"wav_given_s32": "wav"}, {"speech_feat": "x", "out.s": "s"}, ("sine_waves",)),
    ),
}

# Part -> pattern of a tensor -> why it is not compared, on one side or on both.
OMITTED: dict[str, dict[str, tuple[str, str]]] = {
    "SourceModuleHnNSF": {
        "noise": ("both", "noise that the generator never reads, so neither side returns it"),
    },
    "utils.mask": {
        r"mask_zero_len_mutated_by_c\d+": ("port", "MLX arrays are values: the port cannot edit its caller's mask"),
    },
    "RotaryEmbedding": {"inv_freq": ("port", "the port computes the angles and keeps no frequencies")},
    "mel_spectrogram": {"hann_window": ("both", "both sides keep the window to themselves; it is judged through mel")},
    "CausalConditionalCFM.rand_noise": {r"uv_\d+": ("both", "the original draws this buffer and never reads it")},
}


def part_of(upstream: str, known: Container[str]) -> str | None:
    """The first known part that a text names, by the longest end of its path; `.forward` is optional."""
    for match in re.finditer(r"[A-Za-z_]\w*(?:\.\w+)*", upstream):
        words = match[0].split(".")
        for end in (".".join(words[start:]) for start in range(len(words))):
            for name in (end, end.removesuffix(".forward")):
                if name in known:
                    return name
    return None


def runs(part: str) -> tuple[Run, ...]:
    """The calls that reproduce a part: its entry in `TABLE`, else one call of the part of that name."""
    return TABLE.get(part) or tuple(Run(path) for path in PARTS if path.split(".", 2)[2] == part)


NAMES = frozenset({*TABLE, *(path.split(".", 2)[2] for path in PARTS)})


# The part that a failing file names, where it is not the part of that name.
SPECIAL = {
    **dict.fromkeys(("CosyVoice3LM.inference", "CosyVoice3LM.inference_bistream"), "llm.speech_lm.CosyVoice3LM"),
    **dict.fromkeys(("ras_sampling", "nucleus_sampling"), "llm.sampling"),
    **dict.fromkeys(("CausalConditionalCFM.rand_noise", "CausalHiFTGenerator.m_source"), "noise"),
    "utils.mask": _CHUNKED,
    "CosyVoice3Model.tts": "model.CosyVoice3Model",
    "CosyVoice3Model.llm_job": "model.drop_silence",
}


def named_by(upstream: str) -> str | None:
    """The part that a failing golden file names, by its `upstream`; None if unknown."""
    part = part_of(upstream, SPECIAL.keys() | NAMES)
    return SPECIAL.get(part or "") or (runs(part)[0].path if part else None)
