"""Conditional flow matching: schedule, guidance and Euler steps (cosyvoice/flow/flow_matching.py).

b batch, n frames, C mel channels, N steps
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import FlowConfig
from ..stream.state import FlowState, StepState
from .dit import DiT

Guidance = Literal["batched", "separate"]


def cosine_schedule(n_timesteps: int, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """Times of the states, (N + 1,) from 0 to 1, dense near 0 (`CausalConditionalCFM.forward`)."""
    k = np.arange(n_timesteps + 1)
    # torch.linspace counts from both ends and rounds each point once.
    step = np.float64(dtype(1) / dtype(n_timesteps))
    points = np.where(k < len(k) // 2, step * k, 1 - step * (n_timesteps - k)).astype(dtype)
    angles = points * dtype(0.5) * dtype(np.pi)
    return dtype(1) - np.cos(angles.astype(np.float64)).astype(dtype)


class CausalConditionalCFM(nn.Module):
    """Turns noise into mel frames by integrating the estimator's velocity (`CausalConditionalCFM`)."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config.cfm
        self.estimator = DiT(config.dit)

    def velocity(
        self,
        x: mx.array,
        t: np.floating | float,
        mu: mx.array,
        mask: mx.array | None,
        spks: mx.array,
        cond: mx.array,
        streaming: bool = False,
        guidance: Guidance = "batched",
        state: StepState | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Guided velocity of the state and the two velocities it mixes; shapes as in `__call__`, `t` one number.

        Args:
            guidance: `batched` runs both halves as one batch, as the original; `separate` runs them in turn.
            state: what a stream keeps of both halves at time `t`; `batched` only.

        Returns:
            guided, conditional and unconditional velocity, (b, n, C) float32 each.

        Raises:
            ValueError: any other guidance.
        """
        # The unconditional half keeps state and mask, and has zeros for everything else (solve_euler).
        if guidance == "batched":
            v = self.estimator(
                mx.concatenate([x, x]),
                None if mask is None else mx.concatenate([mask, mask]),
                mx.concatenate([mu, mx.zeros_like(mu)]),
                t,
                mx.concatenate([spks, mx.zeros_like(spks)]),
                mx.concatenate([cond, mx.zeros_like(cond)]),
                streaming,
                state,
            )
            v_cond, v_uncond = mx.split(v.astype(mx.float32), 2)
        elif guidance == "separate" and state is None:
            v_cond = self.estimator(x, mask, mu, t, spks, cond, streaming).astype(mx.float32)
            v_uncond = self.estimator(
                x, mask, mx.zeros_like(mu), t, mx.zeros_like(spks), mx.zeros_like(cond), streaming
            ).astype(mx.float32)
        else:
            raise ValueError(f"guidance {guidance!r} is unknown or not for a stream; choose batched or separate")
        rate = self.config.inference_cfg_rate
        return (1.0 + rate) * v_cond - rate * v_uncond, v_cond, v_uncond

    def solve_euler(
        self,
        x: mx.array,
        t_span: np.ndarray,
        mu: mx.array,
        mask: mx.array | None,
        spks: mx.array,
        cond: mx.array,
        streaming: bool = False,
        guidance: Guidance = "batched",
        state: FlowState | None = None,
    ) -> Iterator[tuple[mx.array, np.floating]]:
        """Yield state and time before each step and after the last, N + 1 pairs; a step runs when its pair is read.

        State and time stay float32 whatever the dtype of the weights, and each state is evaluated before it is given.

        Args:
            x: the noise, (b, n, C) float32.
            t_span: times from `cosine_schedule`, (N + 1,).
            state: of a stream, whose chunk the frames are: a `StepState` for each of the N steps.
        """
        t, dt = t_span[0], t_span[1] - t_span[0]
        yield x, t
        for i, following in enumerate((*t_span[2:], None)):
            step = state.steps[i] if state else None
            x = x + float(dt) * self.velocity(x, t, mu, mask, spks, cond, streaming, guidance, step)[0]
            mx.eval(x, step.arrays if step else [])
            # A step's length is measured from the running sum of steps, not from the schedule (solve_euler).
            t = t + dt
            dt = following - t if following is not None else dt
            yield x, t

    def __call__(
        self,
        mu: mx.array,
        mask: mx.array | None,
        spks: mx.array,
        cond: mx.array,
        noise: mx.array,
        n_timesteps: int = 10,
        temperature: float = 1.0,
        streaming: bool = False,
        guidance: Guidance = "batched",
        state: FlowState | None = None,
    ) -> mx.array:
        """Generate mel frames.

        Args:
            mu: token features, (b, n, C).
            mask: valid frames, (b, n), non-zero or True = valid; None = all are valid.
            spks: speaker, (b, C).
            cond: prompt mel and zeros, (b, n, C).
            noise: standard normal, (b or 1, at least n, C); frame 0 is for the prompt's first frame.
            n_timesteps: Euler steps N.
            temperature: the noise is multiplied by it.
            streaming: use the chunk mask.
            guidance: as in `velocity`.
            state: as in `solve_euler`; `noise` then begins with the chunk's first frame.

        Returns:
            natural log-mel, (b, n, C) float32.

        Raises:
            ValueError: the noise is shorter than the mel.
        """
        n = mu.shape[1]
        if noise.shape[1] < n:
            raise ValueError(f"noise holds {noise.shape[1]} frames, the mel needs {n}")
        x = mx.broadcast_to(noise[:, :n].astype(mx.float32), mu.shape) * temperature
        t_span = cosine_schedule(n_timesteps)
        *_, (mel, _) = self.solve_euler(x, t_span, mu, mask, spks, cond, streaming, guidance, state)
        return mel
