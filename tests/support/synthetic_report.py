"""Made-up but realistic runs of the suite, for the tests of the report: no model is run."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mlx_parity.report import data, sections
from mlx_parity.report.model import Report
from mlx_parity.report.words import BUDGET
from reports.cosyvoice3 import STAGES

BLOCKS, STEPS = 4, 3
WAV = "UklGRiwAAABXQVZFZm10IBAAAAABAAEAwF0AAIC7AAACABAAZGF0YQgAAAAAAIQDfPwAAA=="  # four samples
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="  # one grey dot
UNITS = {
    "llm": ("llm.qwen2.Qwen2RMSNorm", "llm.qwen2.Qwen2Attention", "llm.qwen2.Qwen2MLP", "llm.speech_lm.CosyVoice3LM"),
    "flow": (
        "flow.layers.GRN",
        "flow.layers.Attention",
        "flow.layers.AdaLayerNormZero",
        "flow.layers.FeedForward",
        "flow.dit.DiT",
    ),
    "vocoder": (
        "vocoder.generator.Snake",
        "vocoder.source.SineGen2",
        "vocoder.stft.istft",
        "vocoder.generator.ResBlock",
    ),
}
PARTS = {"attn": "flow.layers.Attention", "attn_norm": "flow.layers.AdaLayerNormZero", "ff": "flow.layers.FeedForward"}


def measured(e_ref: float, ratio: float) -> dict[str, float]:
    """Errors whose ratios are exactly what the report's arithmetic gives for them."""
    found: dict[str, float] = {}
    for norm, scale in (("rms", 1.0), ("max", 4.1)):
        ref = e_ref * scale
        port = ratio * (1.0 if norm == "rms" else 0.9) * max(ref, BUDGET.floor)
        found |= {f"e_ref_{norm}": ref, f"e_port_{norm}": port, f"ratio_{norm}": port / max(ref, BUDGET.floor)}
    return found


def row(name: str, stage: str, kind: data.Kind, module: str, case: str, ratio: float, rng: random.Random) -> data.Row:
    """A float tensor with the given ratio."""
    shape = (2, rng.choice([1, 7, 23, 48]), rng.choice([64, 80, 512]))
    about: dict[str, Any] = {"shape": shape, "dtype": "float32", **measured(10 ** rng.uniform(-7.2, -5.8), ratio)}
    worst = data.Position((0, 3, 41), 0.18231, 0.18190, 0.18190001)
    if failed := ratio > BUDGET.ratio:
        shift = 2 + 2 * (ratio > 100)
        bins = tuple(rng.randrange(40, 900) if 4 <= i <= 8 else 0 for i in range(14))
        grid = tuple(tuple(10 ** rng.uniform(-6, -3) * (8 if j > 12 else 1) for j in range(24)) for _ in range(6))
        about["histogram"] = data.Histogram(tuple(range(-12, 3)), bins[-shift:] + bins[:-shift], bins)
        about["error_map"] = data.ErrorMap("frame", "channel", grid)
        about["nearest_fault"] = "rotary tables for half-split pairs"
    about["worst"] = (worst, *[data.Position((1, 0, 12), None, 1.5, 1.5)] * failed)
    test = f"parity_tests/test_{stage}.py::test_{kind}[{case}]"
    again = f"python -m parity_tests.trace {case}"
    return data.Row(name, stage, kind, module, case, "FAIL" if failed else "PASS", again, test, **about)


def make(seed: int = 0, *, broken: bool = False, **overrides: Any) -> Report:
    """A run; `broken` plants a fault in the attention of DiT block 1, which spreads. Overrides are sections."""
    rng = random.Random(seed)
    again = "pytest parity_tests/test_noise.py"
    bits = ("parity_tests/test_noise.py::test_bits", None, (9, 480), "uint32")
    fold = ("parity_tests/test_conversion.py::test_written", None, (9, 480), "float32")
    rows = [
        data.Row("noise.sine_waves", "noise", "exact", "noise", "noise", "PASS", again, *bits),
        data.Row("conversion.fold", "conversion", "exact", "convert.run", "fold", "PASS", again, *fold),
    ]
    for stage, modules in UNITS.items():
        for module in modules:
            name = f"{stage}.{module.rpartition('.')[2].lower()}"
            bad = broken and module in ("flow.layers.Attention", "flow.dit.DiT")
            ratio = 9.1 if bad else 10 ** rng.uniform(-0.5, 0.4)
            rows.append(row(name, stage, "isolated", module, name, ratio, rng))
            rows.append(row(f"golden.{name}", stage, "golden", module, f"golden.{name}", ratio / 1.1, rng))
    for step in range(STEPS):
        for block in range(BLOCKS):
            for part, module in PARTS.items():
                name = f"flow.decoder.estimator.transformer_blocks.{block}.{part}@step{step}"
                hit = broken and (step, block) >= (0, 1) and (part != "attn_norm" or (step, block) != (0, 1))
                ratio = (9.3 if part == "attn" and (step, block) == (0, 1) else 40 * (step + 1)) if hit else None
                ratio = ratio or 10 ** rng.uniform(-0.4, 0.5)
                rows.append(row(name, "flow", "chained", module, "whole.tts", ratio, rng))
                if step == 0:
                    alone = 9.1 if broken and part == "attn" and block == 1 else 10 ** rng.uniform(-0.4, 0.3)
                    rows.append(row(name, "flow", "isolated", module, "whole.tts", alone, rng))
    parts = {"rotary": "Attention", "GRN": "GRN", "Snake": "Snake", "SineGen2": "SineGen2", "STFT/ISTFT": "istft"}
    components = tuple(_component(name, part, rows) for name, part in parts.items())
    whole = row("whole.wav", "whole", "chained", "cosyvoice3.CosyVoice3", "whole.tts", 380.0 if broken else 1.2, rng)
    test, why = "parity_tests/test_flow.py::test_metal", "no Metal device on this machine"
    skip = data.Row("flow.metal", "flow", "isolated", "flow.dit.DiT", "flow.metal", "SKIP", "pytest --metal", test, why)
    return Report(
        **{
            "provenance": provenance(),
            "stages": STAGES,
            "rows": (*rows, whole, skip),
            "tests": tuple(data.Test(f"parity_tests/test_twins.py::test_{i}", "passed", 0.1) for i in range(12)),
            "components": components,
            "modules": places(),
            "not_checked": (data.Gap("Metal kernels", "this machine has no Metal device"),),
            **overrides,
        }
    )


def places() -> dict[str, data.Module]:
    """Places of the units; the last unit of each stage contains the others."""
    found = {}
    for units in UNITS.values():
        for i, path in enumerate(units):
            file = f"{'/'.join(path.split('.')[:-1])}.py:{10 + i}"
            inside = units[:i] if path == units[-1] else ()
            found[path] = data.Module(f"reference/{file}", f"port/{file}", inside)
    return found


def _component(name: str, part: str, rows: Sequence[data.Row]) -> data.Component:
    evidence = [r for r in rows if r.module.endswith(part) and r.kind != "chained"]
    bad = [r for r in evidence if r.status == "FAIL"]
    checked = f"{name} against float64 alone, on recorded vectors, and inside the whole model"
    issues = tuple(f"{r.name} is over budget" for r in bad[:2])
    return data.Component(name, "FAIL" if bad else "PASS", checked, tuple(r.name for r in evidence), issues)


def provenance() -> data.Provenance:
    return data.Provenance(
        commit="b2e87d1f0c4dd3a97f2a9c9d3f6c1f6f0d4a5b6c",
        dirty=False,
        original="FunAudioLLM/CosyVoice ace7c47",
        weights=tuple(
            data.WeightFile(f"{n}.pt", f"{zlib.crc32(n.encode()):08x}" * 8, 1_350_123_456) for n in ("llm", "flow")
        ),
        revision=None,
        versions={"mlx": "0.32.4", "torch": "2.13.0", "numpy": "2.4.1", "python": "3.11.2"},
        os="Linux 6.1",
        machine="x86_64, 2 cores",
        device="Device(cpu, 0)",
        precision=data.Precision(
            data.Arithmetic("float32", 1.2e-7, "product of 512 terms"),
            data.Arithmetic("float32", 2.3e-7, "convolution of 160 channels in 1 groups"),
            "0",
        ),
        dtype="float32",
        seed=0,
        started="2026-01-02T03:04:05+00:00",
        duration_s=312.4,
        command="make verify",
        adapter="own",
        fast_forms=("tables", "attention"),
    )


def every_section() -> dict[str, Any]:
    """Every section that may be absent, filled."""
    about = {"family": "rotary", "module": "flow.layers.RotaryEmbedding", "seen_in": "a port on PyPI"}
    caught = sections.Fault("", **about, caught=True, by="test_flow.py", first_failing="flow.rotary", right_module=True)
    missed = sections.Fault("", **about, caught=False, by=None, first_failing=None, right_module=None)
    equal = replace(missed, name="fault 4", family="noise", equivalent="rand_ini is overwritten before use")
    faults = (*(replace(caught, name=f"fault {i}") for i in range(4)), equal)
    recorded = sections.Recorded("2026-08-01T12:00:00+00:00", 301.5, "0123abc", "0.32.4", "Device(cpu, 0)", "0123")
    metric = sections.Metric("4-bit", "logits KL", "llm", "nats", 0.0655, 0.0656, 6.76, 1.05, "PASS")
    return {
        "weights_audit": sections.WeightsAudit(
            sources=951, consumed=949, dropped={"lm_head.weight": "tied", "epoch": "a counter"}, parameters=640,
            parameters_by_part={"llm": 400, "flow": 240}, elements=506_123_456,
            transforms={"as it is": 500, "transpose": 90, "fold weight norm": 50},
            files={"llm.pt": sections.SourceFile(3, 1000), "hift.pt": sections.SourceFile(8, 2000, ("epoch", "step"))},
        ),
        "audio": (sections.Clip("zero-shot", 24000, 92.31, 1.4e-4, WAV, WAV, PNG),),
        "quality": (metric,),
        "faults": sections.Faults(faults),
        "fault_catalogue": sections.Catalogue((*faults, replace(missed, name="fault 5")), recorded, fresh=False),
        "liveness": (
            sections.LivenessRow("flow.grn", "x", 8123.5, "PASS"),
            sections.LivenessRow("flow.grn", "gamma", 8123.5, "PASS"),
            sections.LivenessRow("sine", "rand_ini", 0.0, "DEAD", "inert"),
        ),
        "coverage": sections.Coverage(97.25, 93.5, (sections.CoveredFile("port/flow/dit.py", 97.0, None, "41"),)),
    }  # fmt: skip


def amended(report: Any, section: str, i: int, **change: Any) -> Any:
    """A copy of a report, or of its faults, with other fields in one entry of a section."""
    entries = list(getattr(report, section))
    entries[i] = replace(entries[i], **change)
    return replace(report, **{section: tuple(entries)})


def place_of(report: Report, name: str, kind: str = "isolated") -> int:
    """Index of a row."""
    return next(i for i, r in enumerate(report.rows) if (r.name, r.kind) == (name, kind))


def changed(report: Report, name: str, kind: str, ratio: float) -> Report:
    """A copy with one tensor at another ratio."""
    at = place_of(report, name, kind)
    status = "FAIL" if ratio > BUDGET.ratio else "PASS"
    return amended(report, "rows", at, status=status, **measured(report.rows[at].e_ref_rms, ratio))
