"""What is measured: one row per case, with its size, the sides that run it and the small size at which we check them.

The parent and every worker import this file, whatever framework they have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The fast forms (port/fast) that each kind of case uses. A test fails if a form is in no row: it would not be measured.
FORMS_OF = {
    "flow": ("tables", "attention", "joined", "blocks", "activations", "products", "cores"),
    "vocoder": ("activations", "polyphase", "products", "padded", "cores", "double"),
    "prefill": ("activations", "cores"),
    "decode": ("cores", "columns", "queued"),
}
TOKEN_RATE = 25  # speech tokens a second
BAKED = "baked"  # the port drops the weights that only compute the modulations of the fixed timesteps
VARIED = "varied"  # the port also keeps its plain layers, to build other forms or precisions from them
SIDES = ("torch", "port", "mlx_audio_plus")
TO_SAMPLES = ("token2wav", "stream", "first", "networks")  # kinds that run both networks, one after the other


@dataclass(frozen=True)
class Variant:
    """One way to run a case: a side, and its options.

    Args:
        name: of the column, such as `port.no_activations`.
        side: worker that runs it: torch, port or mlx_audio_plus.
        options: `off` (fast forms left out, or "all"), `on` (added), `guidance`, `dtype`, `bits`, `way` (of a stream).
        repeats: most repeats for a side known to be slow, which then gets no untimed run.
        reduced: of lower precision: its error is reported but not judged.
        further: requested from the worker after the parts: `BAKED` or `VARIED`; such a variant has its own worker.
    """

    name: str
    side: str
    options: Mapping[str, Any] = field(default_factory=dict)
    repeats: int | None = None
    reduced: bool = False
    further: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One measurement.

    Args:
        name: dotted, the stage first.
        what: description for the table.
        kind: function of the sides that runs it.
        parts: weights that it needs, by the names of convert/mapping.py.
        size: what is timed.
        check: smaller size, at which the suite's rule judges every variant before we time it.
        variants: columns, in the order of running.
        repeats: timed runs of each variant.
        limit_s: no further repeat of a variant after so many seconds.
        warm: one untimed run of the full size first.
    """

    name: str
    what: str
    kind: str
    parts: tuple[str, ...]
    size: Mapping[str, Any]
    check: Mapping[str, Any]
    variants: tuple[Variant, ...]
    repeats: int = 5
    limit_s: float = 20.0
    warm: bool = True

    @property
    def seconds(self) -> float | None:
        """Seconds of audio that the case makes, without the prompt; None if it makes none."""
        if self.kind in ("flow", "token2wav", "stream"):
            return self.size["tokens"] / TOKEN_RATE
        if self.kind == "networks":
            return self.size["rows"] * self.size["tokens"] / TOKEN_RATE
        return self.size["frames"] / (2 * TOKEN_RATE) if self.kind == "vocoder" else None


TORCH, PORT, PLUS = (Variant(side, side) for side in SIDES)
SLOW_PLUS = Variant("mlx_audio_plus", "mlx_audio_plus", repeats=2)
SEPARATE = Variant("port.separate", "port", {"guidance": "separate"})
OFFLINE = Variant("port.offline", "port", {"way": "offline"})
CAUSAL = Variant("port.causal_final", "port", {"way": "causal_final"})
BAKED_TABLES = Variant("port.baked", "port", further=(BAKED,))
ONE_HOP = Variant("port.one_hop", "port", {"way": "hop"})
KNOWN_VOICE = Variant("port.known_voice", "port", {"way": "known_voice"})
RECOMPUTE = Variant("port.recompute", "port", {"way": "recompute"})
FOUR, EIGHT = (Variant(f"port.rows_{rows}", "port", {"rows": rows}) for rows in (4, 8))
TOGETHER = tuple(Variant(f"port.rows_{rows}", "port", {"rows": rows}) for rows in (2, 4, 8, 16))


def ablation(kind: str) -> tuple[Variant, ...]:
    """The port with each form of a kind left out, and with all left out."""
    single = (_varied(f"port.no_{form}", off=[form]) for form in FORMS_OF.get(kind, ()))
    return (*single, _varied("port.plain", off="all"))


def precisions(dtypes: tuple[str, ...], bits: tuple[int, ...]) -> tuple[Variant, ...]:
    """The port with weights of other dtypes, and with quantized ones."""
    named = [_varied(f"port.{dtype}", reduced=True, dtype=dtype) for dtype in dtypes]
    return (*named, *(_varied(f"port.q{b}", reduced=True, bits=b) for b in bits))


def _varied(name: str, reduced: bool = False, **options: Any) -> Variant:
    return Variant(name, "port", options, reduced=reduced, further=(VARIED,))


QUEUED = _varied("port.queued", on=["queued"])  # on every device; a GPU has it by default


def all_cases(size: str, dtypes: tuple[str, ...] = (), bits: tuple[int, ...] = ()) -> list[Case]:
    """Every case of a size, `tiny` or `full`, in running order: cases with the same parts are adjacent.

    Args:
        dtypes, bits: further precisions of the port, for devices on which they make sense.
    """
    full = size == "full"
    reduced, half = precisions(dtypes, bits), precisions(dtypes, ())
    llm, flow, wave = ("llm",), ("flow",), ("flow", "hift")
    sides = (TORCH, PORT, PLUS)
    cases = [
        Case(
            "llm.prefill",
            "language model, a prompt in one pass",
            "prefill",
            llm,
            {"positions": 300 if full else 12},
            {"positions": 24},
            (*sides, *ablation("prefill"), *reduced),
        ),
        Case(
            "llm.decode",
            "language model, speech tokens one by one",
            "decode",
            llm,
            {"text": 60, "prompt": 50, "tokens": 25 if full else 4},
            {"text": 12, "prompt": 5, "tokens": 6},
            (*sides, QUEUED, *ablation("decode"), *reduced),
        ),
        Case(
            "llm.batch",
            "language model, as many speech tokens from one request and from several together",
            "batch",
            llm,
            {"text": 60, "prompt": 50, "tokens": 32 if full else 16},
            {"text": 20, "prompt": 5, "tokens": 6},
            (TORCH, PORT, *TOGETHER),
            repeats=3,
        ),
    ]
    for frames in (250, 500, 1000) if full else (60,):
        first = frames in (250, 60)
        cases.append(
            Case(
                f"flow.dit.{frames}",
                f"one DiT step, {frames} frames, batch 2",
                "dit",
                flow,
                {"frames": frames},
                {"frames": 60},
                (*sides, *((*ablation("flow"), SEPARATE) if first else ()), *reduced),
                repeats=4,
                limit_s=15.0,
            )
        )
    prompt, second = (50, TOKEN_RATE) if full else (5, 10)
    cases += [
        Case(
            "flow.ten_steps",
            "flow decoder, 10 Euler steps, 250 frames" if full else "flow decoder, 10 Euler steps",
            "flow",
            flow,
            {"prompt": prompt, "tokens": 3 * second, "streaming": False},
            {"prompt": 5, "tokens": 10, "streaming": False},
            sides,
            repeats=2,
            limit_s=10.0,
            warm=not full,
        ),
        Case(
            "flow.chunks",
            "flow decoder under the chunk mask",
            "flow",
            flow,
            {"prompt": prompt, "tokens": 3 * second, "streaming": True},
            {"prompt": 5, "tokens": 30, "streaming": True},
            (TORCH, PORT, *ablation("chunks")),
            repeats=2,
            limit_s=20.0,
            warm=not full,
        ),
        Case(
            "vocoder.3s" if full else "vocoder",
            "vocoder, 3 s of audio" if full else "vocoder",
            "vocoder",
            wave,
            {"frames": 150 if full else 10},
            {"frames": 30},
            (TORCH, PORT, SLOW_PLUS, *ablation("vocoder"), *half),
            limit_s=25.0,
        ),
        Case(
            "token2wav.3s" if full else "token2wav",
            "tokens to samples, prompt of 2 s, 3 s of audio" if full else "tokens to samples",
            "token2wav",
            wave,
            {"prompt": prompt, "tokens": 3 * second},
            {"prompt": 5, "tokens": 10},
            (TORCH, PORT, BAKED_TABLES, SLOW_PLUS, *reduced),
            repeats=2,
            limit_s=30.0,
            warm=False,
        ),
        Case(
            "token2wav.4",
            "tokens to samples, utterances one by one and up to 4 together",
            "networks",
            wave,
            {"prompt": second if full else 5, "tokens": second, "rows": 4 if full else 2},
            {"prompt": 5, "tokens": 10, "rows": 2},
            (TORCH, PORT, FOUR),
            repeats=2,
            limit_s=30.0,
            warm=False,
        ),
        Case(
            "stream.first",
            "time to the first audio of a stream",
            "first",
            wave,
            {"prompt": prompt, "tokens": 8 * second},
            {"prompt": 5, "tokens": 60},
            (TORCH, PORT, ONE_HOP, KNOWN_VOICE, SLOW_PLUS),
            repeats=5,
            limit_s=25.0,
            warm=not full,
        ),
    ]
    # Streams cost most of a full run: each further way is measured once, the longest for the plot of cost by length.
    streams = {5: (OFFLINE, TORCH), 10: (OFFLINE, RECOMPUTE, CAUSAL), 20: (), 30: (OFFLINE,), 60: (OFFLINE,)}
    for length, further in streams.items() if full else [(2, (OFFLINE, TORCH, RECOMPUTE, CAUSAL))]:
        cases.append(
            Case(
                f"stream.{length}s",
                f"a stream of {length} s, all chunks",
                "stream",
                wave,
                {"prompt": prompt, "tokens": length * TOKEN_RATE},
                {"prompt": 5, "tokens": 60},
                (PORT, *further),
                repeats=1 if full else 2,
                limit_s=60.0,
                warm=False,
            )
        )
    cases.append(
        Case(
            "manifest",
            "32 lines, everything included" + ("; 2 to 5 s each, prompt of 2 s" if full else ""),
            "manifest",
            ("llm", *wave),
            {"prompt": prompt, "lines": 32, "text": (10, 25, 15, 20) if full else (1,)},
            {"prompt": 5, "lines": 3, "text": (1,)},
            (TORCH, PORT, EIGHT),
            repeats=1,
            limit_s=600.0,
            warm=False,
        )
    )
    return cases
