"""Every key of the official text files, changed: followed, refused, or listed here with the reason why it is unused.

The files are walked leaf by leaf, so a key that nobody thought of is tested too.
"""

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

from convert.official import QWEN_FILE, TOKENIZER_FILE, YAML_FILE, text_config, with_front_end
from port.config import CosyVoice3Config, SpeakerConfig, SpeechTokenizerConfig
from port.files.errors import Refused
from tests.support import parsed_json

pytestmark = pytest.mark.part("convert", late=1)

DATA = Path(__file__).parents[2] / "parity_tests" / "data" / "official"
TRAINING = "only training reads it"
STORED = "the original stores it but never reads it"
# Keys of cosyvoice3.yaml that never change the audio: globs of paths, and why.
YAML_REASONS = {
    "__set_seed*": "the fixed noise has another seed, and sampling takes its seed as an argument here",
    "qwen_pretrain_path": "the original replaces it with the folder's path",
    "llm.length_normalized_loss": TRAINING,
    "llm.lsm_weight": TRAINING,
    "flow.only_mask_loss": TRAINING,
    "flow.decoder.in_channels": STORED,
    "flow.decoder.n_spks": STORED,
    "flow.decoder.spk_emb_dim": STORED,
    "flow.decoder.cfm_params.content.sigma_min": TRAINING,
    "flow.decoder.cfm_params.content.training_cfg_rate": TRAINING,
    "flow.decoder.cfm_params.content.reg_loss_type": TRAINING,
    "get_tokenizer.skip_special_tokens": "for decoding text, which synthesis never does",
    "allowed_special": "the tokenizer of CosyVoice 3 accepts it but does not read it",
    **{
        f"{section}*": TRAINING
        for section in (
            *("mel_spec_transform1", "hifigan", "parquet_opener", "tokenize", "filter", "resample", "truncate"),
            *("compute_fbank", "compute_f0", "parse_embedding", "shuffle", "sort", "batch", "padding"),
            *("data_pipeline", "train_conf"),
        )
    },
}
# Keys that may be missing: the original's default is the official value, or nothing reads them.
MAY_BE_MISSING = {
    "llm.sampling.*": "its defaults are the official values",
    "flow.output_type": "its default is mel",
    "flow.input_frame_rate": STORED,
    "flow.decoder.estimator.num_decoding_left_chunks": STORED,
    "hift.f0_predictor.num_class": "its default is 1",
    "hift.f0_predictor.in_channels": "its default is 80",
    "get_tokenizer.version": "files from before December 2025 have none",
    "feat_extractor.center": "its default is False",
    "token_frame_rate": "only other keys refer to it",
}
# The same for CosyVoice-BlankEN/config.json.
GENERATION = "only generate() of transformers reads it, which the original does not call"
QWEN_REASONS = {
    "architectures*": "the original names the class itself",
    "attention_dropout": TRAINING,
    "bos_token_id": GENERATION,
    "eos_token_id": GENERATION,
    "use_cache": "the original sets it in every call",
    "initializer_range": TRAINING,
    "max_position_embeddings": "rotary tables grow as they are needed",
    "max_window_layers": "there is no sliding window",
    "sliding_window": "there is no sliding window",
    "torch_dtype": "transformers 4.51.3 loads float32 unless it is asked for another dtype",
    "transformers_version": "the version that wrote the file",
}
QWEN_MAY_BE_MISSING = {
    "model_type": "the original names the class itself",
    "hidden_act": "its default is silu",
    "tie_word_embeddings": "the head of the text vocabulary is not used",
    "use_sliding_window": "its default is False",
}


@pytest.fixture
def folder(tmp_path):
    """The official text files, to be changed."""
    (tmp_path / QWEN_FILE).parent.mkdir()
    for name in (YAML_FILE, QWEN_FILE, TOKENIZER_FILE):
        shutil.copyfile(DATA / Path(name).name, tmp_path / name)
    return tmp_path


def read(folder):
    """The configuration, or None where a file is refused with a one-line error."""
    try:
        return with_front_end(text_config(folder), SpeechTokenizerConfig(), SpeakerConfig())
    except Refused as error:
        assert "\n" not in str(error)
        return None


def reasons(table, path):
    return [pattern for pattern in table if fnmatchcase(path, pattern)]


def leaves(node, path=""):
    """(path, node) of each scalar of a yaml tree, and of each mapping or list with a tag."""
    if isinstance(node, yaml.MappingNode):
        if node.tag.startswith("!"):
            yield path, node
        for key, value in node.value:
            yield from leaves(value, f"{path}.{key.value}".lstrip("."))
    elif isinstance(node, yaml.SequenceNode):
        if node.tag.startswith("!"):
            yield path, node
        for i, value in enumerate(node.value):
            yield from leaves(value, f"{path}[{i}]")
    else:
        yield path, node


def others(text):
    """Other values for a scalar, as yaml text."""
    value = yaml.safe_load(text)
    if isinstance(value, bool):
        return [str(not value)]
    if isinstance(value, int | float):
        return [str(value + 1), str(-value - 3)]
    return ["8000", "something"] if value is None else [f"'{value}x'", "7", "null"]


def changed(text, node):
    """Copies of the file's text, each with another value, reference or class at one node."""
    start, end = node.start_mark.index, node.end_mark.index
    if not isinstance(node, yaml.ScalarNode):
        end = start + len(node.tag)
        return [text[:start] + node.tag + "Other" + text[end:]]
    if not node.tag.startswith("!"):
        return [text[:start] + other + text[end:] for other in others(text[start:end])]
    if node.tag == "!ref":
        return [text[:start] + other + text[end:] for other in ("7777", "elsewhere", "!ref <nothing>")]
    return [text[:start] + text[start:end].replace(node.tag, f"{node.tag}Other") + text[end:]]


def yaml_leaves():
    text = (DATA / YAML_FILE).read_text()
    return {path: changed(text, node) for path, node in leaves(yaml.compose(text, yaml.SafeLoader))}


YAML_LEAVES = yaml_leaves()


def test_the_official_files_are_the_default(folder):
    assert read(folder) == CosyVoice3Config()


@pytest.mark.parametrize("path", YAML_LEAVES)
def test_another_value_in_the_yaml(folder, path):
    known = reasons(YAML_REASONS, path)
    for text in YAML_LEAVES[path][: 1 if known else None]:
        (folder / YAML_FILE).write_text(text)
        found = read(folder)
        if known:  # else the reason is out of date
            assert found in (None, CosyVoice3Config()), path
        else:
            assert found != CosyVoice3Config(), f"{path} is neither followed nor refused"
    assert len(known) <= 1


def entries(node, path=""):
    """Keys of a yaml tree: path, first line, line after the last, column."""
    for key, value in node.value:
        here, block = f"{path}.{key.value}".lstrip("."), isinstance(value, yaml.MappingNode)
        last = value.end_mark.line + (not block)  # a block mapping ends where the next key begins
        yield here, key.start_mark.line, last, key.start_mark.column
        if block:
            yield from entries(value, here)


YAML_ENTRIES = list(entries(yaml.compose((DATA / YAML_FILE).read_text(), yaml.SafeLoader)))


def test_a_key_missing_from_the_yaml(folder):
    lines = (DATA / YAML_FILE).read_text().splitlines()
    for path, first, last, _ in YAML_ENTRIES:
        (folder / YAML_FILE).write_text("\n".join(lines[:first] + lines[last:]))
        found = read(folder)
        if reasons(YAML_REASONS | MAY_BE_MISSING, path):
            assert found in (None, CosyVoice3Config()), path
        else:
            assert found is None, f"{path} may be missing"


def test_an_unknown_key_in_the_yaml(folder):
    lines = (DATA / YAML_FILE).read_text().splitlines()
    read_here = {e[0].rpartition(".")[0]: e for e in YAML_ENTRIES if not reasons(YAML_REASONS, e[0])}
    for path, first, _, column in read_here.values():
        if column:  # a name at the top may exist only for references
            (folder / YAML_FILE).write_text("\n".join([*lines[:first], " " * column + "surplus: 1", *lines[first:]]))
            assert read(folder) is None, path


def other_values(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, -value - 3, str(value), None]
    return [f"{value}x", 7, None]


QWEN = json.loads((DATA / "config.json").read_text())


@pytest.mark.parametrize(
    "path", [path for path, _ in parsed_json.leaves(QWEN)], ids=lambda path: ".".join(map(str, path))
)
def test_another_value_in_the_backbones_config(folder, path):
    name = ".".join(map(str, path))
    known = reasons(QWEN_REASONS, name)
    for value in other_values(dict(parsed_json.leaves(QWEN))[path]):
        (folder / QWEN_FILE).write_text(json.dumps(parsed_json.edited(QWEN, path, value)))
        found = read(folder)
        assert (found in (None, CosyVoice3Config())) if known else found != CosyVoice3Config(), (name, value)


def test_a_missing_or_unknown_key_in_the_backbones_config(folder):
    for key in QWEN:
        (folder / QWEN_FILE).write_text(json.dumps({k: v for k, v in QWEN.items() if k != key}))
        found = read(folder)
        if reasons(QWEN_REASONS | QWEN_MAY_BE_MISSING, key):
            assert found == CosyVoice3Config(), key
        else:
            assert found is None, key
    for beside in ({"head_dim": 128}, {"qk_norm": True}):
        (folder / QWEN_FILE).write_text(json.dumps(QWEN | beside))
        assert read(folder) is None
    (folder / QWEN_FILE).write_text(json.dumps(QWEN | {"head_dim": 64}))  # which follows from the other two
    assert read(folder) == CosyVoice3Config()
