"""The three stages of CosyVoice 3 under one roof: language model, flow decoder, vocoder."""

from __future__ import annotations

from torch import nn

from port.config import CosyVoice3Config
from reference.flow.decoder import CausalMaskedDiffWithDiT
from reference.llm.speech_lm import CosyVoice3LM
from reference.vocoder.generator import CausalHiFTGenerator


class CosyVoice3Model(nn.Module):
    """`CosyVoice3Model` of cosyvoice/cli/model.py without its threads and sessions.

    The official files load as they are: `llm.pt` into `.llm`, `flow.pt` into `.flow`, `hift.pt` into `.vocoder`.

    Args:
        config: sizes of all parts.
    """

    def __init__(self, config: CosyVoice3Config) -> None:
        super().__init__()
        self.config = config
        self.llm = CosyVoice3LM(config.llm)
        self.flow = CausalMaskedDiffWithDiT(config.flow)
        self.vocoder = CausalHiFTGenerator(config.vocoder)
