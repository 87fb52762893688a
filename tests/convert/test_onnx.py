"""Speech tokenizer and speaker encoder: three witnesses (reference, port, onnxruntime) on official-style ONNX files,
and the batch, length and segment rules of both models."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch

from mlx_parity.compare import BUDGET, FLOOR, compare
from parity_tests.speech_support import write_voice
from port.frontend import audio as port_audio
from port.frontend import speaker as port_speaker
from port.frontend import speech_tokenizer as port_tokenizer
from reference.frontend import audio as reference_audio
from reference.frontend.speaker import CAMPPlus
from tests.support.onnx_support import CLASSES, COUNTS, HELD, OPSETS, SPEAKER, Witnesses

PARTS = pytest.mark.parametrize("part", COUNTS)
EVERY_OPSET = pytest.mark.parametrize("opset", OPSETS)


@pytest.fixture(scope="module")
def witnesses(onnx_files):
    found = {(part, opset): Witnesses(part, onnx_files / f"{part}{opset}.onnx") for part in COUNTS for opset in OPSETS}
    held = {("held", opset): Witnesses("speaker", onnx_files / f"speaker_held{opset}.onnx") for opset in OPSETS}
    return found | held


def log_mel(frames, seed=0):
    """(1, 128, T) and its length."""
    mel = np.random.default_rng(seed).standard_normal((1, 128, frames))
    return mel.astype(np.float32), np.array([frames], np.int32)


def tokens_of(w, mel, lengths):
    """Activations and tokens, each of port, reference and oracle."""
    with torch.inference_mode():
        a64, n = w.oracle.activations(torch.from_numpy(mel).double(), torch.from_numpy(lengths))
        a32, _ = w.reference.activations(torch.from_numpy(mel), torch.from_numpy(lengths))
        t64, _ = w.oracle(torch.from_numpy(mel).double(), torch.from_numpy(lengths))
        t32, _ = w.reference(torch.from_numpy(mel), torch.from_numpy(lengths))
    arguments = mx.array(mel.swapaxes(1, 2)), mx.array(lengths)
    (p, n_port), (own, _) = w.port.activations(*arguments), w.port(*arguments)
    assert np.array_equal(np.array(n_port), n.numpy())
    # A tie would make equal tokens a matter of luck: the margin must be far above any rounding error.
    margin, error = np.abs(np.abs(a64.numpy()) - 0.5).min(), np.abs(a32.numpy() - a64.numpy()).max()
    assert margin > 2 * BUDGET * max(error, FLOOR), f"an input too near a tie: margin {margin:.1e}, error {error:.1e}"
    return (np.array(p), a32.numpy(), a64.numpy()), (np.array(own), t32.numpy(), t64.numpy())


# ---- three witnesses


@pytest.mark.part("frontend.speech_tokenizer.S3TokenizerV3.activations")
@EVERY_OPSET
@pytest.mark.parametrize("frames", [203, 100, 57, 204, 5])
def test_tokens_of_three_witnesses(witnesses, opset, frames):
    w = witnesses["speech_tokenizer", opset]
    mel, lengths = log_mel(frames, seed=frames)
    activations, (own, t32, t64) = tokens_of(w, mel, lengths)
    assert compare(*activations).status == "PASS"
    assert compare(own, t32, t64).status == "PASS"
    assert np.array_equal(w.onnx(mel, lengths).flatten(), own.flatten())
    assert own.shape == (1, -(-frames // 4))
    assert own.min() >= 0 and own.max() < 3**8
    assert len(set(own.flatten().tolist())) > own.size // 3  # not one token over and over


@pytest.mark.part("frontend.speaker.CAMPPlus")
@EVERY_OPSET
@pytest.mark.parametrize("frames", [3, 57, 198, 200, 203, 400, 431])
def test_embeddings_of_three_witnesses(witnesses, opset, frames):
    """onnxruntime 1.32 divides a short last segment by its length, 1.18 by 100 as the official file needs.

    So onnxruntime is compared only where both agree; test_golden_onnx.py has numbers made with 1.18.
    """
    x = np.random.default_rng(frames).standard_normal((1, frames, 80)).astype(np.float32)
    for form in ("held", "speaker"):
        w = witnesses[form, opset]
        with torch.inference_mode():
            r32, r64 = w.reference(torch.from_numpy(x)).numpy(), w.oracle(torch.from_numpy(x).double()).numpy()
        sides = {"port": np.array(w.port(mx.array(x)))}
        if form == "held" or frames in (200, 400):
            sides["onnxruntime"] = w.onnx(x)
        for side, found in sides.items():
            reading = compare(found, r32, r64)
            assert reading.status == "PASS", f"{form} {side}: {reading.message}"


@pytest.mark.part("frontend.speaker.CAMPPlus")
def test_both_divisions_are_written_and_read(witnesses):
    x = np.random.default_rng(0).standard_normal((1, 203, 80)).astype(np.float32)
    for form, divided in (("speaker", True), ("held", False)):
        assert witnesses[form, 14].weights.config.divide_by_full_segment is divided
    full, held = (np.array(witnesses[form, 14].port(mx.array(x))) for form in ("speaker", "held"))
    assert 1e-4 < np.abs(full - held).max() / np.abs(held).max() < 1


@pytest.mark.part("frontend.frontend")
def test_from_a_file_to_tokens_and_embedding(witnesses, tmp_path):
    path = write_voice(tmp_path / "prompt.wav", 3.5, 22050)
    theirs, own = reference_audio.load_wav(path, 16000), port_audio.load_wav(path, 16000)
    w = witnesses["speech_tokenizer", 14]
    mel = reference_audio.log_mel_spectrogram(theirs).numpy()
    lengths = np.array([mel.shape[2]], np.int32)
    tokens = tokens_of(w, mel, lengths)[1][0]
    assert tokens.shape == (1, 88)  # 25 a second
    port_mel = port_audio.log_mel_spectrogram(own)
    assert np.array_equal(np.array(w.port(port_mel, mx.array(lengths))[0]), tokens)
    assert np.array_equal(w.onnx(mel, lengths).flatten(), tokens.flatten())
    w = witnesses["held", 14]
    features = [reference_audio.fbank(theirs.to(d), subtract_mean=True)[None] for d in (torch.float32, torch.float64)]
    with torch.inference_mode():
        r32, r64 = w.reference(features[0]).numpy(), w.oracle(features[1]).numpy()
    own_features = port_audio.fbank(own, subtract_mean=True)[None]
    for found in (np.array(w.port(own_features)), w.onnx(features[0].numpy())):
        assert compare(found, r32, r64).status == "PASS"


# ---- rules of the models


@pytest.mark.part("frontend.speech_tokenizer.S3TokenizerV3")
def test_padding_does_not_reach_the_tokens(witnesses):
    w = witnesses["speech_tokenizer", 14]
    rows = [log_mel(frames, seed=frames) for frames in (203, 100, 57)]
    mel = np.concatenate([np.pad(m, ((0, 0), (0, 0), (0, 203 - m.shape[2])), constant_values=9.0) for m, _ in rows])
    lengths = np.concatenate([length for _, length in rows])
    activations, (own, t32, _) = tokens_of(w, mel, lengths)
    assert compare(*activations).status == "PASS"
    for row, (m, length) in enumerate(rows):
        n = -(-int(length[0]) // 4)
        for found in (own, t32):
            assert np.array_equal(found[row, :n], w.onnx(m, length).flatten())


@pytest.mark.part("frontend.speech_tokenizer.S3TokenizerV3")
def test_no_more_positions_than_the_tables_hold(witnesses):
    w, frames = witnesses["speech_tokenizer", 14], 4 * port_tokenizer.MAX_POSITIONS + 1
    with pytest.raises(ValueError, match="more than the tokenizer's 8192"):
        w.port(mx.zeros((1, frames, 128)), mx.array([frames]))
    with pytest.raises(ValueError, match="more than the tokenizer's 8192"):
        w.reference(torch.zeros(1, 128, frames), torch.tensor([frames]))


@pytest.mark.part("frontend.speaker.CAMPPlus")
@pytest.mark.parametrize("config", [SPEAKER, HELD], ids=["full", "held"])
@pytest.mark.parametrize("frames", [1, 99, 100, 101, 250, 300])
def test_segments_are_divided_by_100_or_by_their_length(frames, config):
    x = np.random.default_rng(frames).standard_normal((2, frames, 3))
    divided = config.divide_by_full_segment
    expected = np.concatenate(
        [
            s.sum(1, keepdims=True) / (100 if divided else s.shape[1]) + 0 * s
            for s in np.split(x, range(100, frames, 100), 1)
        ],
        axis=1,
    )
    own = port_speaker.CAMLayer(3, 4, 1, 100, divided).seg_pooling(mx.array(x.astype(np.float32)))
    theirs = [
        CLASSES["speaker"][0](config).xvector.block1.tdnnd1.cam_layer.seg_pooling(torch.from_numpy(x).mT.to(dtype)).mT
        for dtype in (torch.float32, torch.float64)
    ]
    assert np.abs(theirs[1].numpy() - expected).max() < 1e-14
    assert compare(np.array(own), theirs[0].numpy(), theirs[1].numpy()).status == "PASS"


@pytest.mark.part("frontend.speaker.CAMPPlus")
def test_too_few_frames_for_a_speaker(witnesses):
    for model, x in ((witnesses["speaker", 14].port, mx.zeros((1, 2, 80))), (CAMPPlus(SPEAKER), torch.zeros(1, 2, 80))):
        with pytest.raises(ValueError, match="2 fbank frames are too few"):
            model(x)


@pytest.mark.part("convert.onnx")
@PARTS
def test_every_weight_is_alive(witnesses, part):
    """A change of 10 % in any one tensor moves the oracle's output by at least five budgets."""
    w = witnesses[part, 14]
    if part == "speaker":
        x = torch.from_numpy(np.random.default_rng(5).standard_normal((1, 203, 80)))
        run = lambda model: model(x.to(model.head.conv1.weight.dtype))  # noqa: E731
    else:
        mel, lengths = log_mel(57, seed=5)
        arguments = torch.from_numpy(mel), torch.from_numpy(lengths)
        run = lambda model: model.activations(arguments[0].to(model.conv1.weight.dtype), arguments[1])[0]  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        y = run(w.oracle)
        rms = y.square().mean().sqrt()
        error = float((run(w.reference) - y).square().mean().sqrt() / rms)
        for key, tensor in w.oracle.state_dict().items():
            kept = tensor.clone()
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor += 0.1 * kept.square().mean().sqrt() * (noise.abs() if key.endswith("running_var") else noise)
            moved = float((run(w.oracle) - y).square().mean().sqrt() / rms)
            tensor.copy_(kept)
            assert moved > 5 * BUDGET * max(error, FLOOR), key


# ---- mistakes that ports make: each must fail


def _pairs(x, rope):
    cos, sin = (table[:, None] for table in rope)
    turned = mx.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)
    return x * cos + turned * sin


def _held_segments(self, x):
    means = [x[:, i : i + 100].mean(axis=1, keepdims=True) for i in range(0, x.shape[1], 100)]
    return mx.repeat(mx.concatenate(means, axis=1), 100, axis=1)[:, : x.shape[1]]


def _sample_spread(self, x):
    return mx.concatenate([x.mean(axis=1), mx.sqrt(x.var(axis=1))], axis=-1)


def _memory_alone(self, inputs, mask):
    return self.fsmn_block(inputs * mask[:, :, None])


MISTAKES = {
    "rotary on neighbouring channels": ("speech_tokenizer", port_tokenizer, "apply_rotary_emb", _pairs),
    "no rotary": ("speech_tokenizer", port_tokenizer, "apply_rotary_emb", lambda x, rope: x),
    "tanh GELU": ("speech_tokenizer", nn, "gelu", nn.gelu_approx),
    "memory without the values": (
        "speech_tokenizer",
        port_tokenizer.FSMNMultiHeadAttention,
        "forward_fsmn",
        _memory_alone,
    ),
    "quantizer bound of 1": ("speech_tokenizer", port_tokenizer, "FSQ_BOUND", 1.0),
    "last segment divided by its length": ("speaker", port_speaker.CAMLayer, "seg_pooling", _held_segments),
    "deviation divided by n": ("speaker", port_speaker.StatsPool, "__call__", _sample_spread),
}


@pytest.mark.part("convert.onnx")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails(witnesses, monkeypatch, mistake):
    part, owner, name, wrong = MISTAKES[mistake]
    w = witnesses[part, 14]
    x = log_mel(57, seed=5)[0] if part == "speech_tokenizer" else log_mel(203, seed=5)[0][:, :80].swapaxes(1, 2)
    length = np.array([57], np.int32)
    with torch.inference_mode():
        if part == "speaker":
            r32, r64 = w.reference(torch.from_numpy(x.copy())), w.oracle(torch.from_numpy(x.copy()).double())
        else:
            models = ((w.reference, torch.float32), (w.oracle, torch.float64))
            r32, r64 = (m.activations(torch.from_numpy(x).to(d), torch.from_numpy(length))[0] for m, d in models)

    def judge():
        found = (
            w.port(mx.array(x))
            if part == "speaker"
            else w.port.activations(mx.array(x.swapaxes(1, 2)), mx.array(length))[0]
        )
        return compare(np.array(found), r32.numpy(), r64.numpy()).status

    assert judge() == "PASS"
    monkeypatch.setattr(owner, name, wrong)
    assert judge() == "FAIL"
