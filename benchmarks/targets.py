"""The targets: what is promised, what was measured, and whether the target is met.

Each target reads the rows of one run. If a row failed or was left out, its target is "not measured".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["met", "missed", "not measured"]
Cases = Mapping[str, Mapping[str, Any]]
RATE = 24000  # samples a second
TOKEN_SAMPLES = RATE // 25


@dataclass(frozen=True)
class Target:
    """One target with its result.

    Args:
        what: description.
        limit: promised value.
        value: measured value; None if not measured.
        low, high: range of the turns, where there is one.
        status: of this run.
        note: what the number consists of.
    """

    what: str
    limit: str
    value: float | None
    low: float | None
    high: float | None
    status: Status
    note: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(cases: Cases) -> list[Target]:
    """All targets, from the cases of one run by name."""
    return [
        _ratio(cases, "DiT step, 250 frames, against torch", "flow.dit.250", "port/torch", at_most=1.0),
        _ratio(cases, "DiT step, 500 frames, against torch", "flow.dit.500", "port/torch", at_most=1.2),
        _faster(cases, "DiT step, 250 frames, mlx-audio-plus against the port", "flow.dit.250", 1.5),
        _faster(cases, "DiT step, 500 frames, mlx-audio-plus against the port", "flow.dit.500", 1.5),
        _ratio(cases, "speech tokens of 4 requests together, over one alone", "llm.batch", "port.rows_4/port", 1 / 2.5),
        _ratio(cases, "speech tokens of 8 requests together, over one alone", "llm.batch", "port.rows_8/port", 1 / 4),
        _ratio(cases, "a manifest of 32 lines, 8 at once, over one by one", "manifest", "port.rows_8/port", 1 / 1.8),
        _ratio(cases, "vocoder, 3 s, against torch", "vocoder.3s", "port/torch", at_most=1.2),
        _faster(cases, "vocoder, 3 s, mlx-audio-plus against the port", "vocoder.3s", 10.0),
        _value(
            "peak memory of tokens to samples, port with tables baked over mlx-audio-plus",
            lambda: _peak(cases, "token2wav.3s", "port.baked") / _peak(cases, "token2wav.3s", "mlx_audio_plus"),
            at_most=0.65,
            note="mx.get_peak_memory, weights included",
        ),
        _value(
            "weights read in a DiT step, of those of the plain path",
            lambda: (
                cases["flow.dit.250"]["counts"]["port"]["weight_bytes"]
                / cases["flow.dit.250"]["counts"]["port.plain"]["weight_bytes"]
            ),
            at_most=0.6,
            note="arrays in the graph of one step",
        ),
        _value(
            "a stream of 30 s, all chunks, over one offline pass",
            lambda: _median(cases, "stream.30s", "port") / _median(cases, "stream.30s", "port.offline"),
            at_most=2.2,
            note="the original's last chunk included, which runs everything once more",
        ),
        _value(
            "the original's way at 10 s, over one offline pass (for comparison)",
            lambda: _median(cases, "stream.10s", "port.recompute") / _median(cases, "stream.10s", "port.offline"),
            note="the port recomputing everything for each chunk; 5.7 by work at 30 s",
        ),
        _growth(cases["stream.30s"]) if "stream.30s" in cases else _growth({}),
        _ratio(
            cases,
            "first audio of a stream over one hop's flow and vocoder",
            "stream.first",
            "port/one_hop",
            at_most=1.0,
        ),
        _correct(cases),
    ]


def seconds_of_chunks(marks: list[list[float]]) -> list[tuple[float, float, float]]:
    """Start and length in seconds of audio, and cost in seconds a second, of each chunk of a stream."""
    found, before, samples = [], 0.0, 0.0
    for elapsed, count in marks:
        if count:
            found.append((samples / RATE, count / RATE, (elapsed - before) / (count / RATE)))
        before, samples = elapsed, samples + count
    return found


def _growth(case: Mapping[str, Any]) -> Target:
    """Growth of the cost per second, from the first chunk of full length to the second to last chunk."""
    what = "growth of the n-th second's cost over attention's own growth, 30 s"
    marks = case.get("variants", {}).get("port", {}).get("marks") or []
    chunks = seconds_of_chunks(marks)[:-1]  # the last chunk is a full pass over everything, as in the original
    if len(chunks) < 3:
        return Target(what, "<= 1", None, None, None, "not measured", "")
    longest = max(length for _, length, _ in chunks)
    full = [chunk for chunk in chunks if chunk[1] > 0.9 * longest]
    prompt = case["size"]["prompt"] * TOKEN_SAMPLES / RATE
    first, last = full[0], full[-1]
    keys = (prompt + last[0] + last[1]) / (prompt + first[0] + first[1])
    cost = last[2] / first[2]
    note = f"cost x{cost:.2f} from second {first[0]:.0f} to second {last[0]:.0f}, keys x{keys:.2f}"
    return Target(what, "<= 1", cost / keys, None, None, "met" if cost <= keys else "missed", note)


def _correct(cases: Cases) -> Target:
    rows = [(f"{n}: {v}", row) for n, case in cases.items() for v, row in case["variants"].items() if v[:4] == "port"]
    wrong = [name for name, row in rows if row["status"] == "refused"]
    rows = [(name, row) for name, row in rows if (row["check"] or {}).get("status") != "REDUCED"]
    passed = sum((row["check"] or {}).get("status") == "PASS" for _, row in rows)
    note = f"{passed} of {len(rows)} runs of the port pass the suite's rule" + (f"; not {wrong[0]}" if wrong else "")
    status: Status = "not measured" if not rows else "missed" if wrong else "met"
    return Target("no target is met by changing the result", "every path passes", None, None, None, status, note)


def _ratio(cases: Cases, what: str, case: str, name: str, at_most: float) -> Target:
    found = cases.get(case, {}).get("ratios", {}).get(name)
    if name == "port/one_hop":
        found = _inverse(cases.get(case, {}).get("ratios", {}).get("port.one_hop/port"))
    if found is None:
        return Target(what, f"<= {at_most:g}", None, None, None, "not measured", "")
    # Two equal runs differ by noise, so a limit of "no difference" is met if the range includes it.
    measured = found["low"] if name == "port/one_hop" else found["median"]
    status: Status = "met" if measured <= at_most else "missed"
    return Target(what, f"<= {at_most:g}", found["median"], found["low"], found["high"], status, "ratio of times")


def _faster(cases: Cases, what: str, case: str, at_least: float) -> Target:
    found = cases.get(case, {}).get("ratios", {}).get("mlx_audio_plus/port")
    if found is None:
        return Target(what, f">= {at_least:g}", None, None, None, "not measured", "")
    status: Status = "met" if found["median"] >= at_least else "missed"
    return Target(what, f">= {at_least:g}", found["median"], found["low"], found["high"], status, "ratio of times")


def _value(what: str, value: Callable[[], float], at_most: float | None = None, note: str = "") -> Target:
    limit = "-" if at_most is None else f"<= {at_most:g}"
    try:
        found = value()
    except (KeyError, TypeError):
        return Target(what, limit, None, None, None, "not measured", note)
    return Target(what, limit, found, None, None, "met" if at_most is None or found <= at_most else "missed", note)


def _median(cases: Cases, case: str, variant: str) -> float:
    return cases[case]["variants"][variant]["median"]


def _peak(cases: Cases, case: str, variant: str) -> float:
    return cases[case]["variants"][variant]["peak_bytes"]


def _inverse(found: Mapping[str, float] | None) -> dict[str, float] | None:
    if found is None:
        return None
    return {"median": 1 / found["median"], "low": 1 / found["high"], "high": 1 / found["low"]}
