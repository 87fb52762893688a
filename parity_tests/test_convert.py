"""Conversion: what is refused and how, what fine-tuned checkpoints may carry, and the proof by counts.

Each bad input ends in one line, exit code 1 or 2, and leaves nothing behind.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from convert import run
from convert.audit import AuditError, port_shapes, prove
from convert.checkpoint import CheckpointError, StateDict, Tagged, read_state_dict, read_yaml
from convert.hub import needed_files
from convert.mapping import ConversionError, convert, plan
from convert.official import (
    dit_config,
    flow_config,
    llm_config,
    load_config,
    text_config,
    vocoder_config,
    with_front_end,
)
from port.config import ConfigError, CosyVoice3Config, SpeakerConfig, SpeechTokenizerConfig
from port.storage import read_headers
from reference.synthesize import RULES, build, main, state_dict, synthesize, tiny_config
from reference.vocoder.generator import CausalHiFTGenerator

pytestmark = pytest.mark.meta

FILES = needed_files()
ROOT = Path(__file__).resolve().parents[1]
FACTS = ROOT.parent / "shared" / "facts" / "realsize_keys.json"
OFFICIAL = ROOT.parent / "shared" / "official"
CONFIG = tiny_config()


def passing(source, folder):
    return [{"checkpoint": "stand-in", "status": "PASS"}]


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official") / "tiny"
    synthesize(folder, "tiny", seed=3)
    return folder


@pytest.fixture
def source(official, tmp_path):
    return Path(shutil.copytree(official, tmp_path / "source"))


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command on a folder; gives the exit code and the one line on stderr, and checks that nothing is left."""

    def call(folder, out=None, expect_left=()):
        monkeypatch.setattr(run, "parity_check", passing)
        results = tmp_path / "results"
        results.mkdir(exist_ok=True)
        code = run.main(["--hf-path", str(folder), "--mlx-path", str(out or results / "out")])
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line and "%|" not in line and "it/s" not in line]
        if code:
            assert len(lines) == 1, captured.err
            assert lines[0].startswith("convert: ")
            assert sorted(p.name for p in results.iterdir()) == sorted(expect_left)
        return code, lines[0] if lines else ""

    return call


def resave(path, change):
    torch.save(change(torch.load(path, weights_only=True)), path)


def without(key):
    return lambda state: {k: v for k, v in state.items() if k != key}


class Touches:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


# ---- refused


@pytest.mark.parametrize("name", [*FILES])
def test_missing_file(source, command, name):
    (source / name).unlink()
    code, line = command(source)
    assert code == 1
    assert Path(name).name in line
    assert "not found" in line


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_truncated_file(source, command, kept):
    path = source / "hift.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    code, line = command(source)
    assert code == 1
    assert "hift.pt: truncated" in line


def test_pickle_with_code_is_not_run(source, command, tmp_path):
    touched = tmp_path / "touched"
    resave(source / "flow.pt", lambda state: state | {"extra": Touches(touched)})
    code, line = command(source)
    assert code == 1
    assert "flow.pt: refused, its pickle asks for posix.system" in line
    assert not touched.exists()


def test_bare_pickle_is_not_run(source, command, tmp_path):
    touched = tmp_path / "touched"
    (source / "flow.pt").write_bytes(pickle.dumps(Touches(touched)))
    assert command(source)[0] == 1
    assert not touched.exists()


@pytest.mark.parametrize(
    "text",
    [
        "x: !apply:os.system ['touch {touched}']",
        "x: !!python/object/apply:os.system ['touch {touched}']",
        "x: !!python/name:os.system",
        "x: {{y: [1, !apply:subprocess.run [touch, '{touched}']]}}",
        "x: !include:other.yaml",
        "x: !copy <llm>",
        "x: !apply:random.seed.__init__ [1]",
    ],
)
def test_yaml_tag_that_would_run_code(source, command, tmp_path, text):
    touched = tmp_path / "touched"
    path = source / "cosyvoice3.yaml"
    path.write_text(path.read_text() + text.format(touched=touched) + "\n")
    code, line = command(source)
    assert code == 1
    assert "would run code; refused" in line
    assert f"line {len(path.read_text().splitlines())}" in line
    assert not touched.exists()


@pytest.mark.parametrize(
    "text", ["x: [1", "- 1\n- 2\n", "\x00", "a: &a [1]\nb: [*a, *a]\n", "[" * 1500, "x: 2000-13-45\n", "a: !new:x.y ["]
)
def test_yaml_that_is_not_usable(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"bad\.yaml") as refusal:
        read_yaml(path)
    assert "\n" not in str(refusal.value)


def test_wrong_shape(source, command):
    resave(source / "flow.pt", lambda s: s | {"input_embedding.weight": s["input_embedding.weight"][:-1].clone()})
    code, line = command(source)
    assert code == 1
    assert "input_embedding.weight [6560, 80]" in line
    assert "[6561, 80]" in line


def test_wrong_rank(source, command):
    resave(source / "hift.pt", lambda s: s | {"source_downs.0.weight": s["source_downs.0.weight"][0]})
    code, line = command(source)
    assert code == 1
    assert "source_downs.0.weight" in line


def test_unknown_extra_tensor(source, command):
    resave(source / "llm.pt", lambda s: s | {"llm_embedding.weight": torch.zeros(2, 48)})
    code, line = command(source)
    assert code == 1
    assert "unknown tensor 'llm_embedding.weight'" in line


def test_layer_that_the_configuration_does_not_have(source, command):
    def deepen(state):
        last = {k: v for k, v in state.items() if ".layers.1." in k}
        return state | {k.replace(".layers.1.", ".layers.2."): v for k, v in last.items()}

    resave(source / "llm.pt", deepen)
    code, line = command(source)
    assert code == 1
    assert "llm.model.model.layers.2." in line


def test_missing_tensor(source, command):
    resave(source / "llm.pt", without("llm_decoder.weight"))
    code, line = command(source)
    assert code == 1
    assert "llm.llm_decoder.weight is not filled" in line


def test_half_of_a_weight_norm(source, command):
    resave(source / "hift.pt", without("conv_pre.parametrizations.weight.original1"))
    code, line = command(source)
    assert code == 1
    assert "lacks its partner conv_pre.parametrizations.weight.original1" in line


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("flow.pt", "decoder.estimator.proj_out.bias", torch.zeros(80, dtype=torch.int64), "holds int64"),
        ("flow.pt", "decoder.estimator.proj_out.bias", torch.full((80,), float("nan")), "not finite"),
        ("flow.pt", "decoder.estimator.proj_out.bias", torch.full((80,), 1e39, dtype=torch.float64), "not finite"),
        ("flow.pt", "decoder.estimator.proj_out.bias", torch.zeros(1).expand(1 << 40), "claims shape"),
        ("flow.pt", "decoder.estimator.proj_out.bias", torch.zeros(0), "is empty"),
        ("flow.pt", "decoder.estimator.proj_out.bias", torch.zeros(80).to_sparse(), "not a plain dense tensor"),
        ("flow.pt", "decoder.estimator.proj_out.bias", "text", "is str"),
        ("flow.pt", "decoder.estimator.rotary_embed.inv_freq", torch.ones(8), "rotary frequencies"),
        ("llm.pt", "llm.model.lm_head.weight", torch.zeros(601, 64), "differs from the tensor it is tied to"),
        ("hift.pt", "generator.conv_pre.bias", torch.zeros(32), "same tensor under two names"),
    ],
)
def test_bad_tensor(source, command, file, key, value, said):
    resave(source / file, lambda s: s | {key: value})
    code, line = command(source)
    assert code == 1
    assert said in line
    assert key.removeprefix("generator.") in line


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(3), {"state_dict": {}}, {1: torch.zeros(1)}])
def test_not_a_state_dict(source, command, content):
    torch.save(content, source / "llm.pt")
    code, line = command(source)
    assert code == 1
    assert "llm.pt" in line


def test_compressed_archive(source, command):
    path = source / "hift.pt"
    with zipfile.ZipFile(path) as old:
        records = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in records.items():
            new.writestr(name, data)
    code, line = command(source)
    assert code == 1
    assert "is compressed" in line


def test_existing_output_is_kept(source, command, tmp_path):
    out = tmp_path / "results" / "out"
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("keep")
    code, line = command(source, out, expect_left=["out"])
    assert code == 2
    assert "exists already" in line
    assert (out / "mine.txt").read_text() == "keep"


def test_neither_folder_nor_hub_id(command, tmp_path):
    code, line = command(tmp_path / "nowhere" / "at" / "all")
    assert code == 2
    assert "neither a folder nor a hub id" in line


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"checkpoint": "flow.mel", "status": "FAIL"}, {"checkpoint": "x", "status": "PASS"}], "flow.mel is FAIL"),
        ([{"checkpoint": "flow.mel", "status": "SKIP"}], "nothing was compared"),
        ([], "nothing was compared"),
        (None, "not comparable"),
    ],
)
def test_parity_failure_leaves_nothing(official, tmp_path, rows, said):
    out = tmp_path / "new" / "deep" / "out"
    with pytest.raises(run.ParityError, match=said):
        run.convert_folder(run.find_source(str(official)), out, lambda *_: iter(rows) and rows)
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing(official, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.convert_folder(run.find_source(str(official)), tmp_path / "out", interrupt)
    assert list(tmp_path.iterdir()) == []


# ---- configuration


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("solver: 'euler'", "solver: 'midpoint'", "flow.decoder.cfm_params.solver"),
        ("!new:cosyvoice.flow.DiT.dit.DiT", "!new:cosyvoice.flow.unet.Unet", "flow.decoder.estimator: class"),
        ("cosyvoice.llm.llm.CosyVoice3LM", "cosyvoice.llm.llm.Qwen2LM", "llm: class 'cosyvoice.llm.llm.Qwen2LM'"),
        ("    depth: 2", "    depth: 2\n            qk_norm: rms", "flow.decoder.estimator.qk_norm: unknown"),
        ("fmax: null", "fmax: 8000", "feat_extractor.fmax: 8000"),
        ("base_channels: 32", "base_channels: 4294967296", "hift.base_channels"),
        ("base_channels: 32", "base_channels: 36", "hift.base_channels: 36 cannot be halved"),
        ("vocab_size: 6561", "vocab_size: 4096", "flow.vocab_size"),
        ("!ref <chunk_size> * <token_mel_ratio>", "!ref <nothing>", "reference <nothing>"),
        ("!ref <chunk_size> * <token_mel_ratio>", "!ref __import__('os')", "is not a name or a product"),
        ("!ref <chunk_size> * <token_mel_ratio>", "0", "static_chunk_size"),
        ("version: cosyvoice3", "version: cosyvoice2", "get_tokenizer.version"),
        ("sample_rate: 24000", "sample_rate: 22050", "sample_rate: 22050"),
    ],
)
def test_value_that_the_model_does_not_know(source, command, old, new, named):
    path = source / "cosyvoice3.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    code, line = command(source)
    assert code == 1
    assert named in line
    assert "cosyvoice3.yaml" in line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"num_experts": 8}, "num_experts"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": "48"}, "hidden_size"),
    ],
)
def test_backbone_that_the_model_does_not_know(source, command, change, named):
    path = source / "CosyVoice-BlankEN" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    code, line = command(source)
    assert code == 1
    assert named in line
    assert "BlankEN" in line


def test_configuration_of_the_synthetic_checkpoint(official):
    assert load_config(official) == CONFIG


@pytest.mark.parametrize(
    ("tokenizer", "speaker", "said"),
    [
        (SpeechTokenizerConfig(fsq_dim=7), SpeakerConfig(), "2187 codes"),
        (SpeechTokenizerConfig(), SpeakerConfig(embed_dim=512), "512 wide"),
    ],
)
def test_front_end_that_does_not_fit(tokenizer, speaker, said):
    with pytest.raises(ConfigError, match=said):
        with_front_end(CONFIG, tokenizer, speaker)


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official text files are not beside this checkout")
def test_official_configuration_is_the_default():
    assert text_config(OFFICIAL) == CosyVoice3Config()


def test_constructor_arguments_of_parts():
    estimator = {"dim": 48, "depth": 2, "heads": 3, "dim_head": 16, "static_chunk_size": 8, "mel_dim": 12}
    assert dit_config(estimator | {"num_decoding_left_chunks": -1}).heads == 3
    cfm = {"estimator": estimator, "cfm_params": {"solver": "euler", "inference_cfg_rate": 0.5}, "n_spks": 1}
    assert flow_config(cfm).cfm.inference_cfg_rate == 0.5
    istft = {"n_fft": 16, "hop_len": 4}
    f0 = {"num_class": 1, "in_channels": 80, "cond_channels": 24}
    assert vocoder_config({"base_channels": 16, "istft_params": istft, "f0_predictor": f0}).f0_cond_channels == 24
    qwen2 = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert llm_config({"llm_input_size": 32, "speech_token_size": 97, "qwen2": qwen2}).eos == 98
    for reader, arguments in ((dit_config, {"dims": 1}), (llm_config, {"llm_input_size": 31, "qwen2": qwen2})):
        with pytest.raises(ConfigError):
            reader(arguments)


def test_tags_are_data(tmp_path):
    (tmp_path / "a.yaml").write_text("x: !new:os.system {a: 1}\ny: !name:a.b\nz: !apply:random.seed [1986]\n")
    assert read_yaml(tmp_path / "a.yaml") == {
        "x": Tagged("new", "os.system", {"a": 1}),
        "y": Tagged("name", "a.b", None),
        "z": Tagged("apply", "random.seed", [1986]),
    }


# ---- accepted


def old_weight_norm(state):
    names = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
    for new, old in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    return state


def folded(state):
    module = build("hift", CONFIG).to_empty(device="cpu")
    module.load_state_dict(state)
    plain = {k: v for k, v in state.items() if ".parametrizations." not in k}
    for name, child in module.named_modules():
        if hasattr(child, "parametrizations"):
            plain[f"{name}.weight"] = child.weight.detach()
    return plain


VARIANTS = {
    "counters": ("flow.pt", lambda s: s | {"epoch": 7, "step": torch.tensor(1200)}),
    "generator prefix": ("hift.pt", lambda s: {f"generator.{k}": v for k, v in s.items()}),
    "old weight norm": ("hift.pt", old_weight_norm),
    "state_dict wrapper": ("llm.pt", lambda s: {"state_dict": s, "optimizer": {"lr": 1e-5}, "epoch": 2}),
    "module prefix": ("llm.pt", lambda s: {f"module.{k}": v for k, v in s.items()}),
    "all at once": (
        "hift.pt",
        lambda s: {"state_dict": {f"module.generator.{k}": v for k, v in old_weight_norm(s).items()}, "step": 1},
    ),
    "float64, as after the first inference": ("hift.pt", lambda s: {k: v.double() for k, v in s.items()}),
    "transposed storage": (
        "flow.pt",
        lambda s: {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in s.items()},
    ),
}


@pytest.fixture(scope="module")
def plain_output(official, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    run.convert_folder(run.find_source(str(official)), out, passing)
    return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_fine_tuned_variants_give_the_same_weights(source, tmp_path, plain_output, variant):
    file, change = VARIANTS[variant]
    resave(source / file, change)
    audit, _ = run.convert_folder(run.find_source(str(source)), tmp_path / "out", passing)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (plain_output / "model.safetensors").read_bytes()
    assert audit.parameters == len(port_shapes(CONFIG))


def test_ignored_entries_are_reported(source, tmp_path):
    resave(source / "flow.pt", VARIANTS["counters"][1])
    audit, _ = run.convert_folder(run.find_source(str(source)), tmp_path / "out", passing)
    assert audit.files["flow"].ignored == ("epoch", "step")


def test_folded_weights_are_accepted(official):
    state = torch.load(official / "hift.pt", weights_only=True)
    normed = convert("hift", StateDict(dict(state)), CONFIG).tensors
    plain = convert("hift", StateDict(folded(state)), CONFIG).tensors
    assert normed.keys() == plain.keys()
    # Torch folds with its own order of summation: both are roundings of the same weight.
    for name, value in normed.items():
        if name.startswith("vocoder.f0_predictor.condnet") and name.endswith("weight"):
            assert not plain[name][1].any()  # nothing is known beyond the float32 in the file
            value, plain[name] = value[0], plain[name][0]
        np.testing.assert_array_max_ulp(value, plain[name], maxulp=8)


# ---- the table


def test_subset_under_a_prefix():
    weight = np.arange(24, dtype=np.float32).reshape(4, 6)
    key = "decoder.estimator.transformer_blocks.7.attn.to_out.0.weight"
    done = convert("flow", {key: weight}, CONFIG)
    assert done.used == {key: "flow.decoder.estimator.transformer_blocks.7.attn.to_out.weight"}
    np.testing.assert_array_equal(done.tensors[done.used[key]], weight)


def test_units_that_no_file_carries():
    keys = {"dwconv.weight": (6, 1, 7), "dwconv.bias": (6,), "norm.weight": (6,), "grn.gamma": (1, 1, 12)}
    tensors = {key: np.random.default_rng(0).standard_normal(shape).astype(np.float32) for key, shape in keys.items()}
    done = convert("unit", tensors, CONFIG).tensors
    assert done["unit.dwconv.weight"].shape == (6, 7, 1)
    assert set(done) == {f"unit.{key}" for key in keys}


def test_weight_norm_is_folded_in_float32():
    rng = np.random.default_rng(1)
    gain = rng.standard_normal((8, 1, 1)).astype(np.float32)
    direction = rng.standard_normal((8, 5, 3)).astype(np.float32)
    names = ("conv_pre.parametrizations.weight.original0", "conv_pre.parametrizations.weight.original1")
    weight = convert("hift", dict(zip(names, (gain, direction), strict=True)), CONFIG).tensors[
        "vocoder.conv_pre.weight"
    ]
    exact = (
        gain
        * direction.astype(np.float64)
        / np.linalg.norm(direction.reshape(8, -1).astype(np.float64), axis=1)[:, None, None]
    )
    assert weight.dtype == np.float32
    np.testing.assert_array_max_ulp(weight, exact.transpose(0, 2, 1).astype(np.float32), maxulp=4)
    direction[3] = 0
    with pytest.raises(ConversionError, match="all zeros"):
        convert("hift", dict(zip(names, (gain, direction), strict=True)), CONFIG)


def test_the_weight_norm_of_the_pitch_is_folded_in_float64():
    rng = np.random.default_rng(1)
    gain = rng.standard_normal((8, 1, 1)).astype(np.float32)
    direction = rng.standard_normal((8, 5, 3)).astype(np.float32)
    source = "f0_predictor.condnet.2.parametrizations.weight.original"
    done = convert("hift", {f"{source}0": gain, f"{source}1": direction}, CONFIG)
    (weight,) = done.tensors.values()
    assert weight.dtype == np.float32
    wide = torch.from_numpy(direction).double()
    exact = torch._weight_norm(wide, torch.from_numpy(gain).double(), 0).numpy().transpose(0, 2, 1)
    np.testing.assert_array_equal(weight[0], exact.astype(np.float32))
    np.testing.assert_allclose(weight.astype(np.float64).sum(axis=0), exact, rtol=2e-14, atol=0)


def test_parameter_filled_twice():
    with pytest.raises(ConversionError, match=r"vocoder\.conv_pre\.weight is filled twice"):
        plan("hift", ["conv_pre.weight", "conv_pre.weight_g", "conv_pre.weight_v"])


def test_unknown_part():
    with pytest.raises(ConversionError, match="unknown part 'vocos'"):
        plan("vocos", ["x"])


def shapes_of(config):
    return {part: {k: tuple(v.shape) for k, v in build(part, config).state_dict().items()} for part in RULES}


@pytest.mark.parametrize(("config", "sources", "parameters"), [(CONFIG, 407, 323), (CosyVoice3Config(), 951, 867)])
def test_audit_counts(config, sources, parameters):
    shapes = shapes_of(config)
    audit = prove(shapes, {part: plan(part, held) for part, held in shapes.items()}, port_shapes(config, shapes))
    assert (audit.sources, audit.parameters, len(audit.dropped)) == (sources, parameters, 2)
    # Two tensors make one weight in each of the 82 weight-normed convolutions.
    assert audit.consumed == parameters + 82
    assert sum(audit.transforms.values()) == parameters + 2
    kinds = audit.to_dict()["transforms"]
    assert kinds["weight norm folded, input channels last"] == 77
    assert kinds["weight norm folded in float64 to two summands, input channels last"] == 5
    assert "none left over" in audit.verdict


def test_audit_names_what_is_wrong():
    shapes = shapes_of(CONFIG)
    plans = {part: plan(part, held) for part, held in shapes.items()}
    parameters = port_shapes(CONFIG, shapes)
    with pytest.raises(AuditError, match="is consumed 0 times"):
        prove(shapes, plans | {"flow": plans["flow"][1:]}, parameters)
    with pytest.raises(AuditError, match="is consumed 2 times"):
        prove(shapes, plans | {"flow": [*plans["flow"], plans["flow"][-1]]}, parameters)
    with pytest.raises(AuditError, match="extra is not filled"):
        prove(shapes, plans, parameters | {"flow.extra": (1,)})


def test_full_size_tensor_counts():
    shapes = shapes_of(CosyVoice3Config())
    assert {part: len(held) for part, held in shapes.items()} == {"llm": 293, "flow": 330, "hift": 328}


@pytest.mark.skipif(not FACTS.is_file(), reason="the table of the official files is not beside this checkout")
@pytest.mark.parametrize("part", ["flow", "hift"])
def test_full_size_keys_and_shapes(part):
    table = {key: tuple(shape) for key, shape, _ in json.loads(FACTS.read_text())[part]}
    assert shapes_of(CosyVoice3Config())[part] == table


# ---- synthetic checkpoints


@pytest.mark.parametrize("part", RULES)
def test_synthetic_weights_follow_the_seed_and_are_not_zero(part):
    state, again, other = (state_dict(part, CONFIG, seed) for seed in (5, 5, 6))
    for key, value in state.items():
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all(), key
        assert value.abs().median() > 1e-3, key
        assert torch.equal(value, again[key])
    assert sum(torch.equal(value, other[key]) for key, value in state.items()) <= 5  # constants of the pitch


def test_synthetic_pitch_and_level():
    """Voiced and unvoiced frames in any stretch of speech, and samples inside the limits, whatever the seed."""
    for seed in range(4):
        vocoder = CausalHiFTGenerator(CONFIG.vocoder)
        vocoder.load_state_dict(state_dict("hift", CONFIG, seed))
        mel = 1.5 * torch.randn(1, 80, 60, generator=torch.Generator().manual_seed(seed))
        f0 = vocoder.f0_predictor(mel)
        threshold = CONFIG.vocoder.nsf_voiced_threshold
        assert 0.05 < (f0 < threshold).float().mean() < 0.95
        assert 100 < f0.max() < 1000
        wav, _ = vocoder.inference(mel)
        assert wav.square().mean().sqrt() > 0.003
        assert (wav.abs() >= CONFIG.vocoder.audio_limit).float().mean() < 0.02


def test_tied_head_shares_storage(official):
    state = torch.load(official / "llm.pt", weights_only=True)
    head, table = state["llm.model.lm_head.weight"], state["llm.model.model.embed_tokens.weight"]
    assert head.data_ptr() == table.data_ptr()
    assert read_state_dict(official / "llm.pt").shared == head.numel()


def test_synthesize_refuses_a_folder_in_use(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert main(["--size", "tiny", str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# ---- the command


def test_output_folder(plain_output, official):
    written = ["audit.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in plain_output.iterdir()) == written
    config = json.loads((plain_output / "config.json").read_text())
    assert CosyVoice3Config.load(plain_output) == CONFIG
    assert set(config["provenance"]["sha256"]) == set(FILES)
    audit = json.loads((plain_output / "audit.json").read_text())
    assert audit["parity"] == passing(None, None)
    assert audit["files"]["hift"]["tensors"] == 328
    assert read_headers(plain_output).keys() == port_shapes(CONFIG).keys()


@pytest.mark.parametrize("how", [["convert/run.py"], ["-m", "convert.run"]])
def test_runs_as_a_script_and_as_a_module(tmp_path, how):
    (tmp_path / "out").mkdir()
    call = [sys.executable, *how, "--hf-path", str(tmp_path), "--mlx-path", str(tmp_path / "out")]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("convert: ")
    assert "exists already" in done.stderr
    assert subprocess.run(call[:-2], cwd=ROOT, capture_output=True).returncode == 2


def test_revision_of_a_folder_is_a_usage_error(official):
    with pytest.raises(run.UsageError, match="has no revisions"):
        run.find_source(str(official), "main")
