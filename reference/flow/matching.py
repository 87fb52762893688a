"""Conditional flow matching: schedule, guidance and Euler steps (cosyvoice/flow/flow_matching.py).

b batch, n frames, C mel channels, N steps
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from port.config import FlowConfig
from reference.flow.dit import DiT

Guidance = Literal["batched", "separate"]


def cosine_schedule(n_timesteps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Times of the states, (N + 1,) from 0 to 1, dense near 0 (`CausalConditionalCFM.forward`)."""
    return 1 - torch.cos(torch.linspace(0, 1, n_timesteps + 1, dtype=dtype) * 0.5 * torch.pi)


class CausalConditionalCFM(nn.Module):
    """Turns noise into mel frames by integrating the estimator's velocity (`CausalConditionalCFM`)."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config.cfm
        self.estimator = DiT(config.dit)

    def velocity(
        self,
        x: Tensor,
        t: Tensor,
        mu: Tensor,
        mask: Tensor,
        spks: Tensor,
        cond: Tensor,
        streaming: bool = False,
        guidance: Guidance = "batched",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Guided velocity of the state and the two velocities it mixes; shapes as in `forward`, `t` 0-d.

        Args:
            guidance: `batched` runs both halves as one batch, as the original; `separate` runs them in turn.

        Returns:
            guided, conditional and unconditional velocity, (b, C, n) each.

        Raises:
            ValueError: any other guidance.
        """
        # The unconditional half keeps state and mask, and has zeros for everything else (solve_euler).
        if guidance == "batched":
            v = self.estimator(
                torch.cat((x, x)),
                torch.cat((mask, mask)),
                torch.cat((mu, torch.zeros_like(mu))),
                t,
                torch.cat((spks, torch.zeros_like(spks))),
                torch.cat((cond, torch.zeros_like(cond))),
                streaming,
            )
            v_cond, v_uncond = v.chunk(2)
        elif guidance == "separate":
            v_cond = self.estimator(x, mask, mu, t, spks, cond, streaming)
            v_uncond = self.estimator(
                x, mask, torch.zeros_like(mu), t, torch.zeros_like(spks), torch.zeros_like(cond), streaming
            )
        else:
            raise ValueError(f"guidance {guidance!r} is unknown; choose batched or separate")
        rate = self.config.inference_cfg_rate
        return (1.0 + rate) * v_cond - rate * v_uncond, v_cond, v_uncond

    def solve_euler(
        self,
        x: Tensor,
        t_span: Tensor,
        mu: Tensor,
        mask: Tensor,
        spks: Tensor,
        cond: Tensor,
        streaming: bool = False,
        guidance: Guidance = "batched",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield state and time before each step and after the last, N + 1 pairs; a step runs when its pair is read.

        Args:
            x: the noise, (b, C, n).
            t_span: times from `cosine_schedule`, (N + 1,).
        """
        t, dt = t_span[0], t_span[1] - t_span[0]
        yield x, t
        for following in (*t_span[2:], None):
            x = x + dt * self.velocity(x, t, mu, mask, spks, cond, streaming, guidance)[0]
            # A step's length is measured from the running sum of steps, not from the schedule (solve_euler).
            t = t + dt
            dt = following - t if following is not None else dt
            yield x, t

    def forward(
        self,
        mu: Tensor,
        mask: Tensor,
        spks: Tensor,
        cond: Tensor,
        noise: Tensor,
        n_timesteps: int = 10,
        temperature: float = 1.0,
        streaming: bool = False,
        guidance: Guidance = "batched",
    ) -> Tensor:
        """Generate mel frames.

        Args:
            mu: token features, (b, C, n).
            mask: valid frames, (b, 1, n), non-zero or True = valid.
            spks: speaker, (b, C).
            cond: prompt mel and zeros, (b, C, n).
            noise: standard normal, (b or 1, C, at least n); frame 0 is for the prompt's first frame.
            n_timesteps: Euler steps N.
            temperature: the noise is multiplied by it.
            streaming: use the chunk mask.
            guidance: as in `velocity`.

        Returns:
            natural log-mel, (b, C, n).

        Raises:
            ValueError: the noise is shorter than the mel.
        """
        n = mu.shape[2]
        if noise.shape[2] < n:
            raise ValueError(f"noise holds {noise.shape[2]} frames, the mel needs {n}")
        x = noise[:, :, :n].to(mu).expand_as(mu) * temperature
        t_span = cosine_schedule(n_timesteps, mu.dtype).to(mu.device)
        *_, (mel, _) = self.solve_euler(x, t_span, mu, mask, spks, cond, streaming, guidance)
        return mel
