"""The three stages of CosyVoice 3 under one roof: language model, flow decoder, vocoder."""

from __future__ import annotations

import mlx.nn as nn

from port.config import CosyVoice3Config
from port.flow.decoder import CausalMaskedDiffWithDiT
from port.llm.speech_lm import CosyVoice3LM
from port.vocoder.generator import CausalHiFTGenerator


class CosyVoice3Model(nn.Module):
    """`CosyVoice3Model` of cosyvoice/cli/model.py without its threads and sessions.

    Args:
        config: sizes of all parts; parameters are lazy until evaluated or loaded.
    """

    def __init__(self, config: CosyVoice3Config) -> None:
        super().__init__()
        self.config = config
        self.llm = CosyVoice3LM(config.llm)
        self.flow = CausalMaskedDiffWithDiT(config.flow)
        self.vocoder = CausalHiFTGenerator(config.vocoder)
