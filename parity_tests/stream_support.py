"""The small flow decoder, an utterance for it, and the comparison of its stream with the reference."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import mlx.core as mx
import numpy as np
import torch

from mlx_parity.case import normal, tokens
from mlx_parity.compare import compare
from mlx_parity.sides.orders_pytorch import in_other_orders
from mlx_parity.sides.truth import Arrays, Runs, reference_state, run_reference
from parity_tests.adapters.own import OwnPort
from parity_tests.cases import case
from parity_tests.cases.flow import FLOW
from parity_tests.parts import PARTS, swap
from port.stream.flow import StreamingFlow

INFERENCE = PARTS["flow.decoder.CausalMaskedDiffWithDiT.inference"]
AHEAD, RATIO, CHUNK = 3, 2, 8  # tokens, frames a token, frames of a chunk in the small model
TOKENS = 23


def small_state() -> Arrays:
    """Live random weights of the flow decoder, under the reference's names."""
    return reference_state(case("flow.stream", INFERENCE.path, FLOW))


def small_flow(forms: Collection[str] | None = None) -> Any:
    """The port's flow decoder with these weights; `forms` None chooses the fast forms by device."""
    return OwnPort(forms=forms).build(INFERENCE, FLOW, small_state())


@cache
def utterance(prompt: int) -> dict[str, np.ndarray]:
    """Inputs of the flow decoder; `prompt_feat` is (1, F, C) on both sides, `noise` (1, C, n)."""
    drawn = case(
        "flow.stream",
        INFERENCE.path,
        FLOW,
        token=tokens(1, TOKENS, high=61),
        prompt_token=tokens(1, prompt, high=61),
        prompt_feat=normal(1, RATIO * prompt, 12),
        embedding=normal(1, 24),
        noise=normal(1, 12, RATIO * (prompt + TOKENS)),
    )
    return drawn.draw()


@cache
def truth(prompt: int, have: int, finalize: bool) -> Runs:
    """The reference's runs for the first `have` tokens, (1, n, C)."""
    inputs = utterance(prompt)
    inputs = {**inputs, "token": inputs["token"][:, :have]}
    return original(small_state(), inputs, streaming=True, finalize=finalize)


def original(state: Arrays, inputs: Arrays, **call: Any) -> Runs:
    """The reference's runs with these weights, (1, n, C)."""

    def run(dtype: torch.dtype = torch.float32) -> np.ndarray:
        return swap(run_reference(INFERENCE, FLOW, state, inputs, call, dtype)["feat"])

    return run(), run(torch.float64), in_other_orders(run)


def start(flow: Any, about: dict[str, np.ndarray], **options: Any) -> StreamingFlow:
    """A stream of an utterance."""
    feat, embedding, noise = (mx.array(x) for x in (about["prompt_feat"], about["embedding"], swap(about["noise"])))
    return StreamingFlow(flow, about["prompt_token"], feat, embedding, noise=noise, **options)


def run(
    stream: StreamingFlow,
    about: dict[str, np.ndarray],
    cuts: Sequence[int],
    finalize: bool = True,
    truth: Callable[[int, int, bool], Runs] | None = truth,
) -> np.ndarray:
    """Push tokens in pieces of the lengths `cuts`, then the rest; each must equal the end of the reference's run."""
    prompt, count = about["prompt_token"].shape[1], about["token"].shape[1]
    given_frames, pieces = 0, []
    for have, last in [*((min(have, count), False) for have in accumulate(cuts)), (count, finalize)]:
        piece = np.array(stream.push(about["token"][:, :have], finalize=last))
        pieces.append(piece)
        frames = RATIO * have if last else max(0, RATIO * (have - AHEAD))
        assert piece.shape[1] == frames - given_frames
        if piece.size and truth:
            single, double, others = truth(prompt, have, last)
            further = (run[:, given_frames:] for run in others)
            reading = compare(piece, single[:, given_frames:], double[:, given_frames:], further=further)
            assert reading.status == "PASS", reading.message
        given_frames = frames
    return np.concatenate(pieces, axis=1)
