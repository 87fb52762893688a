"""The original's fixed noise and torch's CPU random numbers, rebuilt in numpy.

torch seeds a plain MT19937; each draw below consumes the generator's 32-bit words exactly as torch 2.13 does, so that
a seed given to both sides yields the same numbers. `rand_noise`, `rand_ini` and `sine_waves` are the buffers of the
official model whatever the configuration in use: they follow from seed 0 and the official layer sizes.
"""

from __future__ import annotations

import threading

import numpy as np

from .config import FlowConfig, VocoderConfig

NOISE_SEED = 0  # CausalConditionalCFM.__init__ reseeds with it (cosyvoice/flow/flow_matching.py)
_FLOW, _VOCODER = FlowConfig(), VocoderConfig()
MAX_FRAMES = _FLOW.cfm.max_frames
MAX_SAMPLES = MAX_FRAMES * _VOCODER.hop_samples
HARMONICS = _VOCODER.nb_harmonics + 1

_BLOCK = 1 << 18  # words drawn at once while skipping, values drawn at once while a buffer grows
_GROUP = 16  # torch transforms normals in aligned groups of sixteen
_F32 = np.float32


class TorchGenerator:
    """torch's CPU generator after `torch.manual_seed(seed)`; a private stream that no other draw can disturb.

    Not thread-safe: one generator belongs to one consumer.
    """

    def __init__(self, seed: int) -> None:
        """`seed` is what `torch.manual_seed` takes, 0 <= seed < 2^64; only its low 32 bits matter, as in torch.

        Raises:
            ValueError: the seed is outside that range.
        """
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed {seed} is outside 0..2^64-1")
        self._mt = np.random.RandomState(seed & 0xFFFFFFFF)
        self._spare: float | None = None  # second half of an odd small normal draw

    def words(self, n: int) -> np.ndarray:
        """The next `n` raw words, (n,) uint32."""
        return self._mt.randint(0, 1 << 32, size=n, dtype=np.uint32)

    def skip(self, n: int) -> None:
        """Pass over `n` words in constant memory."""
        while n > 0:
            self.words(min(n, _BLOCK))
            n -= _BLOCK

    def uniform(self, n: int) -> np.ndarray:
        """`torch.rand(n)`: (n,) float32 in [0, 1), 24 random bits and one word each."""
        return (self.words(n) & np.uint32(0xFFFFFF)).astype(_F32) * _F32(2.0**-24)

    def normal(self, n: int) -> np.ndarray:
        """`torch.randn(n)`: (n,) float32 standard normal, equal to torch's up to 3 ulp.

        torch approximates log, sin and cos; here they are exact or nearly so. From sixteen values on, torch fills the
        array with uniforms and transforms aligned groups of sixteen; a ragged tail overwrites the last sixteen
        values with a fresh group, so it costs sixteen more words.
        """
        if n < _GROUP:
            return self._normal_scalar(n)
        x = self.uniform(n)
        whole = n - n % _GROUP
        x[:whole] = _box_muller(x[:whole])
        if whole != n:
            x[-_GROUP:] = _box_muller(self.uniform(_GROUP))
        return x

    def exponential(self, n: int) -> np.ndarray:
        """`torch.empty(n).exponential_()`: (n,) float32, Exp(1), two words each."""
        return (-np.log1p(-self._uniform53(n))).astype(_F32)

    def _uniform53(self, n: int) -> np.ndarray:
        pairs = self.words(2 * n).astype(np.uint64).reshape(n, 2)
        bits = (pairs[:, 0] << np.uint64(32) | pairs[:, 1]) & np.uint64((1 << 53) - 1)
        return bits.astype(np.float64) * 2.0**-53

    def _normal_scalar(self, n: int) -> np.ndarray:
        """torch's route below sixteen values: double Box-Muller pairs, the odd value kept for the next call."""
        out = np.empty(n, _F32)
        for i in range(n):
            if self._spare is not None:
                out[i], self._spare = self._spare, None
                continue
            u1, u2 = self._uniform53(2)
            radius, angle = np.sqrt(-2.0 * np.log1p(-u2)), 2.0 * np.pi * u1
            out[i], self._spare = radius * np.cos(angle), float(radius * np.sin(angle))
        return out


def _box_muller(uniforms: np.ndarray) -> np.ndarray:
    """Groups of sixteen uniforms to sixteen normals: the first eight give radii, the last eight angles."""
    u = uniforms.reshape(-1, 2, _GROUP // 2)
    # A float64 logarithm rounded once is the correctly rounded one; numpy's float32 log agrees with torch less often.
    log_u1 = np.log((_F32(1) - u[:, 0]).astype(np.float64)).astype(_F32)
    radius = np.sqrt(_F32(-2) * log_u1)
    angle = _F32(2 * np.pi) * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(uniforms.shape)


def _draws_between_noise_and_source() -> int:
    """Words that initialising the layers built between `rand_noise` and `rand_ini` consumes (3,852,961).

    One word a weight: the flow's input embedding and speaker projection, then the f0 predictor.
    """
    flow, width, mels = _FLOW, _VOCODER.f0_cond_channels, _VOCODER.in_channels
    embedding = flow.vocab_size * flow.input_size
    speaker = flow.spk_embed_dim * flow.output_size + flow.output_size
    first, others = width * mels * (_VOCODER.f0_look_right + 1) + width, 4 * (width * width * 3 + width)
    return embedding + speaker + first + others + width + 1


class _FixedNoise:
    """The buffers of the official model, drawn on demand and kept; `lock` guards every field."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rand_noise: np.ndarray | None = None
        self.rand_ini: np.ndarray | None = None
        self.source: TorchGenerator | None = None
        self.sines = np.empty((0, HARMONICS), _F32)
        self.drawn = 0  # valid rows of `sines`

    def open_source(self) -> TorchGenerator:
        if self.source is None:
            generator = TorchGenerator(NOISE_SEED)
            generator.skip(_FLOW.output_size * MAX_FRAMES + _draws_between_noise_and_source())
            ini = generator.uniform(HARMONICS)[None]
            ini[:, 0] = 0  # the fundamental starts at phase zero: SineGen2.__init__ (cosyvoice/hifigan/generator.py)
            self.rand_ini, self.source = _frozen(ini), generator
        return self.source

    def grow(self, rows: int) -> None:
        source = self.open_source()
        if rows > len(self.sines):
            # Doubling keeps a stream of short requests linear in its length; earlier results keep the old array alive.
            grown = np.empty((min(max(rows, 2 * len(self.sines)), MAX_SAMPLES), HARMONICS), _F32)
            grown[: self.drawn] = self.sines[: self.drawn]
            self.sines = grown
        while self.drawn < rows:
            count = min(rows - self.drawn, _BLOCK // HARMONICS)
            self.sines[self.drawn : self.drawn + count] = source.uniform(count * HARMONICS).reshape(count, HARMONICS)
            self.drawn += count


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


_FIXED = _FixedNoise()


def rand_noise(frames: int) -> np.ndarray:
    """Starting noise of the flow: first `frames` mel frames of the fixed buffer, (1, 80, frames) float32, read-only.

    Source: `CausalConditionalCFM.__init__` in cosyvoice/flow/flow_matching.py, `torch.randn([1, 80, 15000])` after
    seed 0. Within 3 ulp of torch, whose own values depend on the processor at that level.

    Raises:
        ValueError: more than 15000 frames (300 s, prompt included), where the original breaks.
    """
    _check_range("mel frames", 0, frames, MAX_FRAMES)
    with _FIXED.lock:
        if _FIXED.rand_noise is None:
            # Row-major over (channel, frame): frame n of channel c is draw c * 15000 + n, so a prefix needs the whole.
            noise = TorchGenerator(NOISE_SEED).normal(_FLOW.output_size * MAX_FRAMES)
            _FIXED.rand_noise = _frozen(noise.reshape(1, _FLOW.output_size, MAX_FRAMES))
        return _FIXED.rand_noise[:, :, :frames]


def rand_ini() -> np.ndarray:
    """Initial phases of the harmonics in cycles, (1, 9) float32, read-only, bit-equal; the output ignores them.

    Source: `SineGen2.__init__` in cosyvoice/hifigan/generator.py.
    """
    with _FIXED.lock:
        _FIXED.open_source()
        assert _FIXED.rand_ini is not None
        return _FIXED.rand_ini


def sine_waves(samples: int, offset: int = 0) -> np.ndarray:
    """Noise of the source: rows `offset` to `offset + samples` of the fixed buffer, (samples, 9) float32, read-only.

    Uniform in [0, 1), bit-equal to the original. Drawn up to the furthest sample asked for and kept (0.9 MB a second of
    audio); the whole buffer would be 259 MB. Safe to call from several threads.
    Source: `SineGen2.__init__` in cosyvoice/hifigan/generator.py, `torch.rand(1, 300 * 24000, 9)`.

    Raises:
        ValueError: a row past the buffer's 7,200,000 (300 s), or a negative argument.
    """
    _check_range("samples", offset, samples, MAX_SAMPLES)
    with _FIXED.lock:
        _FIXED.grow(offset + samples)
        rows = _FIXED.sines[offset : offset + samples]
    return _frozen(rows)


def _check_range(what: str, start: int, count: int, limit: int) -> None:
    if start < 0 or count < 0 or start + count > limit:
        raise ValueError(f"{what} {start}..{start + count} are outside the fixed noise of {limit} {what} (300 s)")
