"""The official configuration files are read strictly: an unknown key or value is refused by name."""

import json

import pytest

from convert.official import dit_config, flow_config, llm_config, load_config, vocoder_config, with_front_end
from port.config import SpeakerConfig, SpeechTokenizerConfig
from port.files.errors import Refused
from tests.support.convert_support import CONFIG

pytestmark = pytest.mark.part("convert")


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
def test_an_unsupported_value_in_the_yaml(source, refuses, old, new, named):
    path = source / "cosyvoice3.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    refuses(source, named, "cosyvoice3.yaml")


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
def test_an_unsupported_backbone(source, refuses, change, named):
    path = source / "CosyVoice-BlankEN" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refuses(source, named, "BlankEN")


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
    with pytest.raises(Refused, match=said):
        with_front_end(CONFIG, tokenizer, speaker)


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
        with pytest.raises(Refused):
            reader(arguments)
