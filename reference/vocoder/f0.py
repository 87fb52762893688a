"""Pitch from mel frames (cosyvoice/hifigan/f0_predictor.py).

b batch, n mel frames, C mel bins
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from reference.vocoder.convolution import CausalConv1d


class CausalConvRNNF0Predictor(nn.Module):
    """Five causal convolutions and a linear layer (the name is the original's; nothing in it is recurrent).

    The first convolution looks `look_right` frames ahead, the others see the past only.
    """

    def __init__(self, num_class: int, in_channels: int, cond_channels: int, look_right: int = 3) -> None:
        super().__init__()
        self.look_right = look_right
        layers: list[nn.Module] = [
            weight_norm(CausalConv1d(in_channels, cond_channels, look_right + 1, causal_type="right")),
            nn.ELU(),
        ]
        for _ in range(4):
            layers += [weight_norm(CausalConv1d(cond_channels, cond_channels, 3, causal_type="left")), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(cond_channels, num_class)

    def forward(self, x: Tensor, finalize: bool = True) -> Tensor:
        """Predict the pitch in the dtype of the parameters (`CausalHiFTGenerator.inference` asks for float64).

        Args:
            x: (b, C, n) mel.
            finalize: when False the last `look_right` frames are context only.

        Returns:
            (b, n), or (b, n - look_right) when not `finalize`; Hz, never negative.
        """
        first, *rest = self.condnet
        ahead = self.look_right
        x = first(x) if finalize else first(x[:, :, :-ahead], x[:, :, -ahead:])
        for layer in rest:
            x = layer(x)
        return self.classifier(x.transpose(1, 2)).squeeze(-1).abs()
