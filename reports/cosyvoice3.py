"""CosyVoice 3 in the report: names of stages, version of the original, what is not checked."""

from __future__ import annotations

from mlx_parity.report.data import Gap
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
NOT_CHECKED = (
    Gap(
        "speech that people can judge by ear", "the checkpoint has random weights unless --checkpoint names a real one"
    ),
    Gap("training", "neither side has training code"),
    Gap("the original on a GPU", "its float32 there follows another order of sums; the float64 oracle is the CPU's"),
    Gap("ttsfrd text normalisation", "a closed binary that the original uses when it is installed"),
)
