"""Load both precisions of the reference and the converted port; check the folders that a run names."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mlx.utils import tree_flatten
from torch.nn.utils import parametrize

from convert.conversion import convert_folder
from convert.hub import Source, needed_files
from convert.mapping import PORT_ROOT
from convert.names import strip_prefixes
from convert.official import TOKENIZER_FOLDER, load_config, text_config
from convert.parts import Part, converted_parts, official_parts
from convert.quantize import FLOAT32, Precision
from mlx_parity.report.data import WeightFile
from parity_tests.adapters.own import OwnPort
from port.config import CosyVoice3Config, read_settings
from port.files import weights
from port.files.errors import Refused
from port.files.storage import INDEX_FILE, WEIGHTS_FILE, read_headers
from port.frontend.tokenizer import CosyVoice3Tokenizer
from port.model import CosyVoice3Model as PortModel
from reference.flow.decoder import CausalMaskedDiffWithDiT
from reference.frontend.speaker import CAMPPlus
from reference.frontend.speech_tokenizer import S3TokenizerV3
from reference.llm.speech_lm import CosyVoice3LM
from reference.model import CosyVoice3Model as ReferenceModel
from reference.synthesize import synthesize
from reference.vocoder.generator import CausalHiFTGenerator

OLD_WEIGHT_NORM = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
TIED = {"llm.model.lm_head.weight": "llm.model.model.embed_tokens.weight"}
BUILD: dict[str, type[torch.nn.Module]] = {
    "llm": CosyVoice3LM,
    "flow": CausalMaskedDiffWithDiT,
    "vocoder": CausalHiFTGenerator,
    "speech_tokenizer": S3TokenizerV3,
    "speaker": CAMPPlus,
}
CONVERTED = ("config.json", WEIGHTS_FILE, INDEX_FILE)  # files of a conversion


@dataclass(frozen=True)
class Models:
    """What the chained comparisons run on.

    Args:
        source: official checkpoint folder.
        folder: its conversion.
        config: sizes of all three models.
        single, double: the reference in float32 and float64.
        port: loaded from `folder`, as a user would.
        audit: `audit.json` of the conversion.
    """

    source: Path
    folder: Path
    config: CosyVoice3Config
    single: torch.nn.Module
    double: torch.nn.Module
    port: PortModel
    audit: dict[str, Any]

    @classmethod
    def load(cls, source: Path, folder: Path) -> Models:
        """Load both sides whole.

        Args:
            source: official checkpoint folder.
            folder: its conversion.

        Raises:
            Refused: files that cannot be used.
        """
        config = load_config(source)
        single = ReferenceModel(config)
        for part in converted_parts(folder):
            fill(single.get_submodule(attribute(part)), part, source)
        single.eval()
        double = copy.deepcopy(single).double()
        audit = json.loads((folder / "audit.json").read_text("utf-8")) if (folder / "audit.json").exists() else {}
        return cls(source, folder, config, single, double, OwnPort().as_run(weights.load(folder)), audit)

    @classmethod
    def load_part(cls, source: Path, folder: Path, part: Part, config: CosyVoice3Config, *more: Part) -> Models:
        """Load some parts of both sides, for models too large to hold three times; the others stay without weights.

        Args:
            source, folder: as for `load`.
            part, more: what to load.
            config: of the source, or `shallow`: layers beyond it are not read.

        Raises:
            Refused, KeyError: files that cannot be used, or that lack a tensor.
        """
        single, parts = torch.nn.Module(), {attribute(part): part for part in (part, *more)}
        for name, part in parts.items():
            single.add_module(name, fill(BUILD[name](getattr(config, name)), part, source))
        single.eval()
        port = PortModel(config)
        port.eval()
        weights.expect_baked(port, headers := read_headers(folder), folder)
        # Arrays are read on use, so those of omitted layers never are.
        held = weights.read_arrays(file for file, _ in headers.values())
        if quantization := weights.quantization_of(read_settings(folder)):
            weights.quantize(port, quantization, held)
        for name in parts:
            keys = list(dict(tree_flatten(port[name].parameters())))
            port[name].load_weights([(key, held[f"{name}.{key}"]) for key in keys], strict=True)
            port[name] = OwnPort().as_run(port[name], lazy=True)
        return cls(source, folder, config, single, exact(single), port, {})

    @property
    def files(self) -> list[WeightFile]:
        """The source files with weights."""
        described = self.audit.get("files", {})
        return [WeightFile(f["name"], f["sha256"], f["bytes"]) for f in described.values() if f["tensors"]]

    @property
    def revision(self) -> str | None:
        """Revision of the source on the hub, if it came from there."""
        content = json.loads((self.folder / "config.json").read_text("utf-8"))
        return content.get("provenance", {}).get("revision")


def prepare_models(
    source: Path | None, folder: Path | None, scratch: Path, seed: int, precision: Precision = FLOAT32
) -> Models:
    """Load a checkpoint and its conversion, making whichever is not given below `scratch`, in `precision`."""
    return Models.load(*prepare_folders(source, folder, scratch, seed, precision))


def prepare_folders(
    source: Path | None, folder: Path | None, scratch: Path, seed: int, precision: Precision = FLOAT32
) -> tuple[Path, Path]:
    """The folders of a checkpoint and its conversion, as `prepare_models` loads them."""
    if source is None:
        source = scratch / "checkpoint"
        synthesize(source, "tiny", seed)
    if folder is None:
        folder = scratch / "mlx"
        convert_folder(Source(source, str(source)), folder, precision=precision)
    return source, folder


def shallow(config: CosyVoice3Config, depth: int) -> CosyVoice3Config:
    """The same model with at most `depth` layers in each deep stack."""
    qwen2, dit, tokenizer = config.llm.qwen2, config.flow.dit, config.speech_tokenizer
    return replace(
        config,
        llm=replace(config.llm, qwen2=replace(qwen2, num_hidden_layers=min(depth, qwen2.num_hidden_layers))),
        flow=replace(config.flow, dit=replace(dit, depth=min(depth, dit.depth))),
        speech_tokenizer=replace(tokenizer, depth=min(depth, tokenizer.depth)),
    )


def attribute(part: Part) -> str:
    """Where the models of both sides hold a part."""
    return PORT_ROOT[part.name]


def fill(module: torch.nn.Module, part: Part, source: Path) -> torch.nn.Module:
    """Load the tensors of an official file into a module of the reference, in float32; other tensors are not read.

    Float32 tensors stay on disk until used. Variants of the file, of older versions or fine-tuning, are handled here,
    independently of the conversion table: both spellings of a weight norm; weight norms that are folded already; a
    language model without its head, which is tied to the embedding and never used; rotary frequencies, which are
    computed because half precision rounds them.

    Raises:
        KeyError: a tensor that the module needs is not in the file.
    """
    held = part.read(source / part.file)
    names = {strip_prefixes(part.name, key): key for key in held}
    for name, layer in list(module.named_modules()):
        if parametrize.is_parametrized(layer, "weight") and f"{name}.weight" in names:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    state = {}
    for key, value in module.state_dict().items():
        if key.endswith("rotary_embed.inv_freq"):
            state[key] = value
            continue
        spelled = [key, *(key.replace(new, old) for new, old in OLD_WEIGHT_NORM.items()), TIED.get(key, key)]
        array = held[names[next((name for name in spelled if name in names), key)]]
        state[key] = torch.from_numpy(array if array.flags.writeable else array.copy()).float()
    module.load_state_dict(state, strict=True, assign=True)
    return module


def exact(single: torch.nn.Module) -> torch.nn.Module:
    """A float64 copy of a float32 model that shares its embedding tables; rows are converted on use.

    Tensors tied to a table (the language model's unused head) are shared too and stay float32.
    """
    tables = {module.weight.data_ptr() for module in single.modules() if isinstance(module, torch.nn.Embedding)}
    double = copy.deepcopy(single, {id(p): p for p in single.parameters() if p.data_ptr() in tables})
    for tensor in (*double.parameters(), *double.buffers()):
        if tensor.is_floating_point() and tensor.data_ptr() not in tables:
            tensor.data = tensor.data.double()
    for module in double.modules():
        if isinstance(module, torch.nn.Embedding):
            module.register_forward_hook(lambda _, arguments, row: row.double())
    return double


# ---- folders that a run names


class FolderError(ValueError):
    """A folder that cannot be judged; one line: which, what it lacks, what to give instead."""


def check_folders(checkpoint: Path | None, mlx_path: Path | None) -> None:
    """Refuse a folder that is no official checkpoint, or no conversion; None is not checked.

    Raises:
        FolderError: files missing or damaged, or tensors missing, unknown or of another shape.
    """
    rl = False
    if mlx_path is not None:
        _check_converted(mlx_path)
        rl = converted_parts(mlx_path) != official_parts()
    if checkpoint is not None:
        _check_official(checkpoint, "rl" if rl else "base")


def _check_official(folder: Path, llm: str) -> None:
    missing = [name for name in needed_files(llm) if not (folder / name).is_file()]
    if missing:
        converted = any((folder / name).is_file() for name in CONVERTED)
        hint = "; it looks like a conversion, give that to --mlx-path" if converted else ""
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        raise FolderError(f"--checkpoint: {folder} is no official checkpoint: {missing[0]}{more} not found{hint}")
    try:
        text_config(folder)
        CosyVoice3Tokenizer.from_folder(folder / TOKENIZER_FOLDER)
        for part in official_parts(llm):
            part.read(folder / part.file)
    except Refused as error:
        raise FolderError(f"--checkpoint: {error}") from None


def _check_converted(folder: Path) -> None:
    try:
        weights.load(folder, lazy=True)
        CosyVoice3Tokenizer.from_folder(folder)
    except Refused as error:
        official = any((folder / part.file).is_file() for part in official_parts())
        hint = "; it looks like an official checkpoint, give that to --checkpoint" if official else ""
        raise FolderError(f"--mlx-path: {folder} is no conversion of this repository: {error}{hint}") from None
