"""Made-up but realistic runs of the suite, for the tests of `reports`: no model is run."""

from __future__ import annotations

import base64
import copy
import io
import random
import struct
import wave
import zlib
from typing import Any

from reports.model import BUDGET_RATIO, FLOOR, SCHEMA_VERSION, checkpoint, verdict_of

BLOCKS, STEPS = 4, 3
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
    found = {}
    for norm, scale in (("rms", 1.0), ("max", 4.1)):
        ref = e_ref * scale
        port = ratio * (1.0 if norm == "rms" else 0.9) * max(ref, FLOOR)
        found |= {f"e_ref_{norm}": ref, f"e_port_{norm}": port, f"ratio_{norm}": port / max(ref, FLOOR)}
    return found


def row(name: str, stage: str, kind: str, module: str, case: str, ratio: float, rng: random.Random) -> dict[str, Any]:
    """A float checkpoint with the given ratio."""
    shape = [2, rng.choice([1, 7, 23, 48]), rng.choice([64, 80, 512])]
    e_ref = 10 ** rng.uniform(-7.2, -5.8)
    failed = ratio > BUDGET_RATIO
    about: dict[str, Any] = {"shape": shape, "dtype": "float32", "message": "", **measured(e_ref, ratio)}
    about["worst"] = {"index": [0, 3, 41], "port": 0.18231, "oracle": 0.18190, "reference": 0.18190001}
    if failed:
        shift = 2 + 2 * (ratio > 100)
        bins = [rng.randrange(40, 900) if 4 <= i <= 8 else 0 for i in range(14)]
        about["histogram"] = {
            "edges": list(range(-12, 3)),
            "port": bins[-shift:] + bins[:-shift],
            "reference": bins,
        }
        about["worst_positions"] = [
            about["worst"],
            {"index": [1, 0, 12], "port": None, "oracle": 1.5, "reference": 1.5},
        ]
        grid = [[10 ** rng.uniform(-6, -3) * (8 if j > 12 else 1) for j in range(24)] for _ in range(6)]
        about["error_map"] = {"row_axis": "frame", "column_axis": "channel", "rows": grid}
        about["nearest_fault"] = "rotary tables for half-split pairs"
    test = f"parity_tests/test_{stage}.py::test_{kind}[{case}]"
    status = "FAIL" if failed else "PASS"
    reproduce = f"python -m parity_tests.trace {case}"
    return checkpoint(name, stage, kind, module, case, status, reproduce=reproduce, test=test, **about)


def make(seed: int = 0, *, broken: bool = False, **overrides: Any) -> dict[str, Any]:
    """A run; `broken` plants a fault in the attention of DiT block 1, which spreads. Overrides are sections."""
    rng = random.Random(seed)
    exact: dict[str, Any] = {"shape": [9, 480], "reproduce": "pytest parity_tests/test_noise.py"}
    exact["test"] = "parity_tests/test_noise.py::test_bits"
    rows = [
        checkpoint("noise.sine_waves", "noise", "exact", "noise", "noise", "PASS", dtype="uint32", message="", **exact)
    ]
    exact |= {"test": "parity_tests/test_conversion.py::test_written", "dtype": "float32"}
    rows.append(checkpoint("conversion.fold", "conversion", "exact", "convert.run", "fold", "PASS", **exact))
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
    whole = row("whole.wav", "whole", "chained", "cosyvoice3.CosyVoice3", "whole.tts", 380.0 if broken else 1.2, rng)
    skip = checkpoint(
        "flow.metal", "flow", "isolated", "flow.dit.DiT", "flow.metal", "SKIP", reproduce="pytest --metal",
        test="parity_tests/test_flow.py::test_metal", reason="no Metal device on this machine",
    )  # fmt: skip
    tests = [
        {"nodeid": f"parity_tests/test_twins.py::test_{i}", "outcome": "passed", "duration_s": 0.1, "reason": None}
        for i in range(12)
    ]
    parts = {"rotary": "Attention", "GRN": "GRN", "Snake": "Snake", "SineGen2": "SineGen2", "STFT/ISTFT": "istft"}
    report = {
        "schema_version": SCHEMA_VERSION,
        "verdict": None,
        "provenance": provenance(),
        "budget": {"ratio": BUDGET_RATIO, "floor": FLOOR},
        "checkpoints": [*rows, whole, skip],
        "tests": tests,
        "components": [_component(name, part, rows) for name, part in parts.items()],
        "modules": places(),
        "exceptions": [],
        "not_checked": [{"what": "Metal kernels", "why": "this machine has no Metal device"}],
        **overrides,
    }
    return judged(report)


def places() -> dict[str, Any]:
    """Places of the units, and that the last of each stage is made of the others."""
    found = {}
    for units in UNITS.values():
        for i, path in enumerate(units):
            file = "/".join(path.split(".")[:-1])
            inside = list(units[:i]) if path == units[-1] else []
            found[path] = {side: f"{side}/{file}.py:{10 + i}" for side in ("reference", "port")}
            found[path]["contains"] = inside
    return found


def _component(name: str, part: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    evidence = [r for r in rows if r["module"].endswith(part) and r["kind"] != "chained"]
    bad = [r for r in evidence if r["status"] == "FAIL"]
    return {
        "component": name,
        "status": "FAIL" if bad else "PASS",
        "checked": f"{name} against float64 alone, on recorded vectors, and inside the whole model",
        "evidence": [r["name"] for r in evidence],
        "issues": [r["message"] or f"{r['name']} is over budget" for r in bad[:2]],
    }


def judged(report: dict[str, Any]) -> dict[str, Any]:
    """The report with the verdict that its rows give."""
    sections = {k: report.get(k) for k in ("weights_audit", "liveness", "faults", "components", "quality", "modules")}
    coverage = {"covered": 951, "total": 951} if report.get("liveness") else None
    verdict = verdict_of(report["checkpoints"], report["tests"], weight_coverage=coverage, **sections)
    return report | {"verdict": verdict}


def provenance() -> dict[str, Any]:
    files = [
        {"file": f"{n}.pt", "sha256": f"{zlib.crc32(n.encode()):08x}" * 8, "bytes": 1_350_123_456}
        for n in ("llm", "flow")
    ]
    return {
        "commit": "b2e87d1f0c4dd3a97f2a9c9d3f6c1f6f0d4a5b6c",
        "dirty": False,
        "original": "FunAudioLLM/CosyVoice ace7c47",
        "weights": files,
        "revision": None,
        "versions": {"mlx": "0.32.4", "torch": "2.13.0", "numpy": "2.4.1", "python": "3.11.2"},
        "os": "Linux 6.1",
        "machine": "x86_64, 2 cores",
        "device": "Device(cpu, 0)",
        "precision": {
            "reference": {"regime": "float32", "error": 1.2e-7, "worst": "product of 512 terms"},
            "port": {"regime": "float32", "error": 2.3e-7, "worst": "convolution of 160 channels in 1 groups"},
            "tf32_flag": "0",
        },
        "fast_forms": ["tables", "attention"],
        "dtype": "float32",
        "seed": 0,
        "started": "2026-01-02T03:04:05+00:00",
        "duration_s": 312.4,
        "command": "make verify",
        "adapter": "own",
    }


def sections() -> dict[str, Any]:
    """Every section that may be absent, filled."""
    fault = {
        "family": "rotary",
        "module": "flow.layers.RotaryEmbedding",
        "seen_in": "a port on PyPI",
        "right_module": True,
    }
    faults = [
        fault
        | {"name": f"fault {i}", "caught": True, "by": "test_flow.py::test_isolated", "first_failing": "flow.rotary"}
        for i in range(5)
    ]
    faults[4] |= {"family": "noise", "caught": False, "by": None, "first_failing": None, "right_module": None}
    faults[4] |= {"equivalent": "rand_ini is overwritten before use"}
    alive = {"tensor": "gamma", "status": "PASS", "moved_budgets": 8123.5}
    return {
        "weights_audit": {
            "sources": 951, "consumed": 949, "dropped": [{"key": "lm_head.weight", "reason": "tied"}] * 2,
            "parameters": 640, "filled": 640, "transforms": {"as it is": 500, "transpose": 90, "fold weight norm": 50},
            "elements": 506_123_456, "unused": [], "missing": [], "files": {"llm.pt": 293, "hift.pt": {"tensors": 328}},
        },
        "llm": {"tokens_compared": 250, "agreement": 0.996, "first_disagreement": 249, "gap": 1.2e-6},
        "audio": [
            {
                "name": "zero-shot", "sample_rate": 24000, "snr_db": 92.31, "log_mel_distance": 1.4e-4,
                "reference_wav": _wav(0), "port_wav": _wav(1), "spectrogram_png": _png(),
            }
        ],
        "quality": [
            {
                "precision": "4-bit", "layers": 2,
                "metrics": [
                    {
                        "metric": "logits KL", "stage": "llm", "unit": "nats", "value": 0.0655, "rounding": 0.0656,
                        "variety": 6.76, "limit": 1.05, "status": "PASS",
                    }
                ],
            }
        ],
        "faults": {"score": {"caught": 4, "total": 4}, "rows": faults},
        "fault_catalogue": {
            "score": {"caught": 4, "total": 5},
            "rows": [*faults, fault | {"name": "fault 5", "caught": False, "by": None, "first_failing": None}],
            "fresh": False,
            "recorded": {
                "started": "2026-08-01T12:00:00+00:00", "duration_s": 301.5, "commit": "0123abc", "mlx": "0.32.4",
                "device": "Device(cpu, 0)", "fingerprint": "0123456789abcdef",
            },
        },
        "liveness": [
            alive | {"case": "flow.grn", "tensor": "x"},
            alive | {"case": "flow.grn"},
            alive | {"case": "sine", "tensor": "rand_ini", "status": "XFAIL", "moved_budgets": 0.0, "reason": "inert"},
        ],
        "coverage": {
            "line_percent": 97.25, "branch_percent": 93.5,
            "files": [{"file": "port/flow/dit.py", "line_percent": 97.0, "branch_percent": None, "missing": "41"}],
        },
    }  # fmt: skip


def _wav(seed: int) -> str:
    rng, data = random.Random(seed), io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24000)
        file.writeframes(b"".join(struct.pack("<h", rng.randrange(-2000, 2000)) for _ in range(2400)))
    return base64.b64encode(data.getvalue()).decode()


def _png(width: int = 240, height: int = 60) -> str:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    lines = b"".join(b"\0" + bytes((x * y) % 256 for x in range(width)) for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def changed(report: dict[str, Any], name: str, kind: str, ratio: float) -> dict[str, Any]:
    """A copy with one checkpoint at another ratio, judged again."""
    report = copy.deepcopy(report)
    at = next(i for i, r in enumerate(report["checkpoints"]) if (r["name"], r["kind"]) == (name, kind))
    old = report["checkpoints"][at]
    report["checkpoints"][at] = old | {
        **measured(old["e_ref_rms"], ratio),
        "ratio": None,
        "status": "FAIL" if ratio > BUDGET_RATIO else "PASS",
    }
    new = report["checkpoints"][at]
    new["ratio"] = max(new["ratio_rms"], new["ratio_max"])
    return judged(report)
