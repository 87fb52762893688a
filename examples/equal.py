"""How equal is the port's wave to the original's? In decibels, against numbers that the original made; without torch.

python examples/equal.py parity_tests/data/golden/hift_inference_final0.safetensors
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1]))
from convert.mapping import convert
from port.config import CosyVoice3Config, VocoderConfig
from port.files.strict import from_dict
from port.vocoder.generator import CausalHiFTGenerator


def main(file):
    """Run the port's vocoder on the recorded mel, and print both sides' distance from the original in float64."""
    with safe_open(file, "np") as golden:
        sizes, call = (json.loads(golden.metadata()[name]) for name in ("config", "call"))
        arrays = {name: golden.get_tensor(name) for name in golden.keys()}  # noqa: SIM118, not a mapping
    sizes |= {"f0_cond_channels": sizes.pop("f0_predictor")["cond_channels"]}
    sizes |= {f"istft_{name}": size for name, size in sizes.pop("istft_params").items()}
    vocoder = CausalHiFTGenerator(from_dict(VocoderConfig, sizes, "vocoder"))
    weights = {name.removeprefix("w."): array for name, array in arrays.items() if name.startswith("w.")}
    tensors = convert("hift", weights, CosyVoice3Config()).tensors
    vocoder.load_weights([(name.removeprefix("vocoder."), mx.array(array)) for name, array in tensors.items()])
    mel, noise = mx.array(arrays["in.speech_feat"]).swapaxes(1, 2), mx.array(arrays["in.sine_waves"])
    wave, _ = vocoder.inference(mel, call["finalize"], noise)
    for side, found in (("port", np.array(wave)), ("the original's own float32", arrays["out.wav"])):
        error = np.square(found - arrays["out64.wav"]).sum() / np.square(arrays["out64.wav"]).sum()
        print(f"{side}: {-10 * np.log10(error):.1f} dB")


if __name__ == "__main__":
    main(*sys.argv[1:])
