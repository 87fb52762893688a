"""A miniature foreign port: numpy, channels first, names of its own; with one fault on request."""

import numpy as np

from mlx_parity.adapter import NotOffered
from parity_tests.adapters.parts import Job, Parts


class ToyConv:
    """Causal convolution of (b, C, n); looks back only."""

    def __init__(self, kernel: np.ndarray, offset: np.ndarray, dilation: int) -> None:
        self.kernel, self.offset, self.dilation = kernel, offset, dilation

    def forward(self, x: np.ndarray) -> np.ndarray:
        taps, n = self.kernel.shape[2], x.shape[2]
        x = np.pad(x, ((0, 0), (0, 0), ((taps - 1) * self.dilation, 0)))
        parts = [self.kernel[:, :, k] @ x[:, :, k * self.dilation : k * self.dilation + n] for k in range(taps)]
        return sum(parts) + self.offset[:, None]


def toy_snake(x: np.ndarray, pitch: np.ndarray, faulty: bool) -> np.ndarray:
    """The fault: the square is not divided by alpha."""
    wave = np.sin(pitch[:, None] * x) ** 2
    return x + (wave if faulty else wave / (pitch[:, None] + np.float32(1e-9)))


def toy_parts(faulty: bool) -> Parts:
    """The toy's parts: a convolution that looks back, Snake, and the residual block made of both."""
    parts = Parts()

    @parts.offers("vocoder.convolution.CausalConv1d")
    def conv(job: Job) -> dict[str, np.ndarray]:
        if job.config["causal_type"] == "right" or "cache" in job.inputs:
            raise NotOffered("looks back only, and forgets")
        toy = ToyConv(job.state["weight"], job.state["bias"], job.config["dilation"])
        return {"y": toy.forward(job.inputs["x"])}

    @parts.offers("vocoder.generator.Snake")
    def snake(job: Job) -> dict[str, np.ndarray]:
        return {"y": toy_snake(job.inputs["x"], job.state["alpha"], faulty)}

    @parts.offers("vocoder.generator.ResBlock")
    def resblock(job: Job) -> dict[str, np.ndarray]:
        def folded(name: str) -> ToyConv:
            g, v = (job.state[f"{name}.parametrizations.weight.original{i}"] for i in (0, 1))
            kernel = g * v / np.sqrt((v**2).sum(axis=(1, 2), keepdims=True))
            dilation = job.config["dilations"][int(name[-1])] if name.startswith("convs1") else 1
            return ToyConv(kernel, job.state[f"{name}.bias"], dilation)

        x = job.inputs["x"]
        for i in range(len(job.config["dilations"])):
            y = folded(f"convs1.{i}").forward(toy_snake(x, job.state[f"activations1.{i}.alpha"], faulty))
            x = x + folded(f"convs2.{i}").forward(toy_snake(y, job.state[f"activations2.{i}.alpha"], faulty))
        return {"y": x}

    return parts
