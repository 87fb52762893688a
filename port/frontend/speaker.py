"""CAM++ speaker encoder: Kaldi fbank in, 192-wide embedding out. Norms that follow a convolution are folded into it.

b batch, T fbank frames, n frames after the first stride (about T / 2), C channels, f mel bins

The graph of campplus.onnx; the same model in PyTorch, unfolded, is `CAMPPlus` of 3D-Speaker (campplus/DTDNN.py).
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..config import SpeakerConfig
from ..files.strict import HEAD_STRIDE

MIN_FRAMES = 3  # fewer leave a single frame, which has no standard deviation


def _mean_over_time(x: mx.array) -> mx.array:
    """x (b, n, C) -> (b, 1, C).

    MLX's CPU adds one frame after another in float32, so its error grows with n; the mean of what is left takes it out.
    """
    mean = x.mean(axis=1, keepdims=True)
    return mean + (x - mean).mean(axis=1, keepdims=True)


class BatchNorm(nn.Module):
    """Batch norm with fixed statistics; without `affine` there is no scale and shift."""

    def __init__(self, channels: int, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.running_mean = mx.zeros(channels)
        self.running_var = mx.ones(channels)
        if affine:
            self.weight = mx.ones(channels)
            self.bias = mx.zeros(channels)

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, ..., C) -> same shape."""
        x = (x - self.running_mean) * mx.rsqrt(self.running_var + self.eps)
        return x * self.weight + self.bias if "weight" in self else x


class Nonlinear(nn.Module):
    """Batch norm, then ReLU (`get_nonlinear`); without `affine` the norm alone."""

    def __init__(self, channels: int, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.relu = affine
        self.batchnorm = BatchNorm(channels, eps, affine)

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, ..., C) -> same shape."""
        x = self.batchnorm(x)
        return nn.relu(x) if self.relu else x


class BasicResBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; `stride` acts on the mel bins only."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Sequential(*([nn.Conv2d(channels, channels, 1, stride=(stride, 1))] if stride != 1 else []))

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, f, T, C) -> (b, ceil(f / stride), T, C)."""
        return nn.relu(self.conv2(nn.relu(self.conv1(x))) + self.shortcut(x))


class FCM(nn.Module):
    """Convolutional head over mel bins and time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.layer1 = nn.Sequential(BasicResBlock(channels, 2), BasicResBlock(channels, 1))
        self.layer2 = nn.Sequential(BasicResBlock(channels, 2), BasicResBlock(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, T, f) -> (b, T, C * f / 8), the bins of one channel next to each other."""
        x = self.layer2(self.layer1(nn.relu(self.conv1(x.swapaxes(1, 2)[..., None]))))
        return nn.relu(self.conv2(x)).transpose(0, 2, 3, 1).flatten(2, 3)


class TDNNLayer(nn.Module):
    """Convolution over time, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, T, C) -> (b, ceil(T / stride), out_channels)."""
        return nn.relu(self.linear(x))


class CAMLayer(nn.Module):
    """Convolution gated by the means of the utterance and of each 100-frame segment (context-aware masking)."""

    def __init__(
        self, bn_channels: int, out_channels: int, dilation: int, segment_frames: int, divide_by_full_segment: bool
    ) -> None:
        super().__init__()
        self.segment_frames, self.dilation = segment_frames, dilation
        self.divide_by_full_segment = divide_by_full_segment
        self.linear_local = nn.Conv1d(bn_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(bn_channels, bn_channels // 2, 1)
        self.linear2 = nn.Conv1d(bn_channels // 2, out_channels, 1)

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, n, C) -> (b, n, out_channels)."""
        context = _mean_over_time(x) + self.seg_pooling(x)
        gate = mx.sigmoid(self.linear2(nn.relu(self.linear1(context))))
        return self.linear_local(x) * gate

    def seg_pooling(self, x: mx.array) -> mx.array:
        """Mean of each segment at each of its frames, (b, n, C).

        The sum of a short last segment is divided by its length, or by `segment_frames` if `divide_by_full_segment`.
        """
        size, n = self.segment_frames, x.shape[1]
        segments = [x[:, start : start + size] for start in range(0, n, size)]
        means = [_mean_over_time(segment) for segment in segments]
        if self.divide_by_full_segment:
            means[-1] = means[-1] * (segments[-1].shape[1] / size)
        pairs = zip(means, segments, strict=True)
        return mx.concatenate([mx.broadcast_to(mean, segment.shape) for mean, segment in pairs], axis=1)


class CAMDenseTDNNLayer(nn.Module):
    """Bottleneck, then `CAMLayer`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bn_channels: int,
        dilation: int,
        segment_frames: int,
        divide_by_full_segment: bool,
        eps: float,
    ) -> None:
        super().__init__()
        self.nonlinear1 = Nonlinear(in_channels, eps)
        self.linear1 = nn.Conv1d(in_channels, bn_channels, 1)
        self.cam_layer = CAMLayer(bn_channels, out_channels, dilation, segment_frames, divide_by_full_segment)

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, n, C) -> (b, n, out_channels)."""
        return self.cam_layer(nn.relu(self.linear1(self.nonlinear1(x))))


class CAMDenseTDNNBlock(nn.Module):
    """Dense layers; each reads the input and all outputs before it, and `tdnnd1` is the first."""

    def __init__(
        self,
        num_layers: int,
        in_channels: int,
        out_channels: int,
        bn_channels: int,
        dilation: int,
        segment_frames: int,
        divide_by_full_segment: bool,
        eps: float,
    ) -> None:
        super().__init__()
        self.names = [f"tdnnd{i + 1}" for i in range(num_layers)]
        for i, name in enumerate(self.names):
            channels = in_channels + i * out_channels
            arguments = (channels, out_channels, bn_channels, dilation, segment_frames, divide_by_full_segment, eps)
            setattr(self, name, CAMDenseTDNNLayer(*arguments))

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, n, C) -> (b, n, C + num_layers * out_channels)."""
        for name in self.names:
            x = mx.concatenate([x, getattr(self, name)(x)], axis=-1)
        return x


class TransitLayer(nn.Module):
    """Batch norm, ReLU, 1x1 convolution; only the last has a bias, from the norm folded into it."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool, eps: float) -> None:
        super().__init__()
        self.nonlinear = Nonlinear(in_channels, eps)
        self.linear = nn.Conv1d(in_channels, out_channels, 1, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, n, C) -> (b, n, out_channels)."""
        return self.linear(self.nonlinear(x))


class StatsPool(nn.Module):
    """Mean and unbiased standard deviation over time."""

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, n, C) -> (b, 2 C)."""
        n, mean = x.shape[1], _mean_over_time(x)
        deviation = x - mean
        variance = _mean_over_time(deviation * deviation) * (n / (n - 1))
        return mx.concatenate([mean, mx.sqrt(variance)], axis=-1)[:, 0]


class DenseLayer(nn.Module):
    """Projection to the embedding, then a batch norm without scale and shift."""

    def __init__(self, in_channels: int, out_channels: int, eps: float) -> None:
        super().__init__()
        self.linear = nn.Conv1d(in_channels, out_channels, 1, bias=False)
        self.nonlinear = Nonlinear(out_channels, eps, affine=False)

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, C) -> (b, out_channels)."""
        return self.nonlinear(self.linear(x[:, None])[:, 0])


class XVector(nn.Module):
    """Time-delay network from the head's channels to the embedding."""

    def __init__(self, in_channels: int, config: SpeakerConfig) -> None:
        super().__init__()
        c, eps = config, config.norm_eps
        self.tdnn = TDNNLayer(in_channels, c.init_channels, kernel_size=5, stride=2)
        self.names: list[str] = []
        channels, last = c.init_channels, len(c.block_layers)
        for i, (layers, dilation) in enumerate(zip(c.block_layers, c.block_dilations, strict=True), start=1):
            segments = (c.segment_frames, c.divide_by_full_segment)
            block = CAMDenseTDNNBlock(layers, channels, c.growth_rate, c.bottleneck_channels, dilation, *segments, eps)
            channels += layers * c.growth_rate
            setattr(self, f"block{i}", block)
            setattr(self, f"transit{i}", TransitLayer(channels, channels // 2, bias=i == last, eps=eps))
            self.names += [f"block{i}", f"transit{i}"]
            channels //= 2
        self.stats = StatsPool()
        self.dense = DenseLayer(2 * channels, c.embed_dim, eps)

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, T, C) -> (b, embed_dim)."""
        x = self.tdnn(x)
        for name in self.names:
            x = getattr(self, name)(x)
        return self.dense(self.stats(nn.relu(x)))


class CAMPPlus(nn.Module):
    """The whole encoder."""

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        self.config = config
        self.head = FCM(config.head_channels)
        self.xvector = XVector(config.head_channels * config.n_mels // HEAD_STRIDE, config)

    def __call__(self, x: mx.array) -> mx.array:
        """Embed an utterance.

        Args:
            x: (b, T, f), `fbank` with its mean over time subtracted.

        Returns:
            (b, embed_dim), not normalised: the flow decoder does that.

        Raises:
            ValueError: fewer than 3 frames.
        """
        if x.shape[1] < MIN_FRAMES:
            raise ValueError(f"{x.shape[1]} fbank frames are too few for a speaker embedding; {MIN_FRAMES} are needed")
        return self.xvector(self.head(x))
