"""CosyVoice 3 in the report: names of its stages, and the original that is the truth."""

from __future__ import annotations

from mlx_parity.report.words import Wording

ORIGINAL = "FunAudioLLM/CosyVoice ace7c47"
PIPELINE = ("text_tokenizer", "speech_tokenizer", "speaker", "llm", "flow", "vocoder")
STAGES = ("conversion", "noise", "frontend", *PIPELINE, "whole")  # in the order the data flows
WORDING = Wording(
    title="CosyVoice 3",
    stages={stage: stage.replace("_", " ") for stage in STAGES}
    | {"frontend": "audio front end", "llm": "language model", "whole": "whole model"},
    pipeline=PIPELINE,
    catalogue="make record",
)
