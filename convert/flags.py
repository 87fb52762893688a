"""Flags of the commands and their choices. Nothing here loads MLX or torch, so `--help` is fast."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from convert.release import LLM_FILES, RELEASE
from port.app.device import DEVICES
from port.files.hub import ID

TAGS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
# The parameters of each part that may leave float32.
PARTS = {
    "llm": r"llm\.qwen2\.layers\.\d+\.(self_attn|mlp)\..*\.(weight|bias)",
    "embeddings": r"llm\.(qwen2\.embed_tokens|speech_embedding)\.weight",
    "flow": r"flow\.decoder\.estimator\.transformer_blocks\.\d+\..*\.(weight|bias)",
    "vocoder": r"vocoder\.(?!f0_predictor|m_source).*\.(weight|bias)",
    "speech_tokenizer": r"speech_tokenizer\.blocks\.\d+\.(attn\.(query|key|value|out)|mlp\..*)\.(weight|bias)",
}
QUANTIZED_PARTS = ("llm", "embeddings", "flow", "speech_tokenizer")  # MLX has no quantized convolution
HALF_BY_DEFAULT = ("llm", "embeddings", "flow")
QUANTIZED_BY_DEFAULT = ("llm",)
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")
RUN = "python convert/run.py"
EXAMPLE = f"""example, with the language model in 4 bits:
  {{program}} --hf-path {RELEASE.repo} --mlx-path mlx-q4 -q"""


def parser(program: str = RUN) -> argparse.ArgumentParser:
    """Parser of convert/run.py; `program` is its name in the help."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Convert an official CosyVoice 3 checkpoint to a verified MLX folder.",
        epilog=EXAMPLE.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hf-path", "--model", required=True, metavar="ID_OR_DIR", help="checkpoint folder or hub id")
    parser.add_argument("--mlx-path", required=True, type=Path, metavar="OUT", help="folder to write; must not exist")
    _add_precision(parser)
    parser.add_argument(
        "--bake-timesteps",
        action="store_true",
        help="store what the flow decoder computes from its fixed timesteps in place of the weights for it: 0.56 GB "
        "less in float32, the same speech; the model then takes no other number of steps",
    )
    parser.add_argument(
        "--device", default="auto", choices=DEVICES, help="where the written files are compared (default: auto)"
    )
    parser.add_argument(
        "--revision",
        metavar="R",
        help=f"branch, tag or commit of a hub id (default: {RELEASE.revision[:8]} of the official one, else main)",
    )
    parser.add_argument("--upload-repo", metavar="NAME", help="hub id to publish the verified folder under")
    parser.add_argument(
        "--llm", choices=LLM_FILES, default="base", help="language model: llm.pt, or rl for llm.rl.pt (default: base)"
    )
    add_card_flags(parser)
    return parser


def _add_precision(parser: argparse.ArgumentParser) -> None:
    """The flags of `mlx_lm.convert`, and the choice of parts."""
    parser.add_argument(
        "--dtype", choices=list(TAGS), default="float32", help="of the written weights (default: float32)"
    )
    parser.add_argument(
        "--dtype-parts",
        metavar="P,P",
        help=f"parts that take it (default: {','.join(HALF_BY_DEFAULT)}): {', '.join(PARTS)}",
    )
    parser.add_argument("-q", "--quantize", action="store_true", help="quantize; the language model alone by default")
    parser.add_argument("--q-bits", type=int, choices=BITS, help="bits a weight (default: 4)")
    parser.add_argument("--q-group-size", type=int, choices=GROUP_SIZES, help="weights a scale (default: 64)")
    parser.add_argument(
        "--q-parts",
        metavar="P,P:BITS",
        help=f"parts to quantize, with bits of their own perhaps (default: llm): {', '.join(QUANTIZED_PARTS)}",
    )


def add_card_flags(parser: argparse.ArgumentParser) -> None:
    """`--base-model` and `--license`."""
    parser.add_argument("--base-model", type=_base, metavar="ID", help="hub id that the card names as the base model")
    parser.add_argument("--license", type=_licence, metavar="NAME", help="licence that the card names, as apache-2.0")


def card_arguments(options: argparse.Namespace) -> list[str]:
    """The same flags again, those that were given."""
    pairs = (("--base-model", options.base_model), ("--license", options.license))
    return [word for flag, value in pairs if value is not None for word in (flag, value)]


def _base(text: str) -> str:
    if not ID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r:.80} is not a hub id such as me/CosyVoice3-tuned")
    return text


def _licence(text: str) -> str:
    if not LICENCE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r:.80} is not a licence of the hub, such as apache-2.0 or other")
    return text
