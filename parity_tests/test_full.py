"""Real sizes (`pytest --full`): one DiT step, the whole vocoder and the whole Qwen2 stack with live weights.

The small cases reach every quirk; these show that no error grows with width and depth.
"""

from dataclasses import asdict, replace

import numpy as np
import pytest

from mlx_parity.case import Case, Draw, normal, uniform
from parity_tests.cases import valid
from parity_tests.parts import PARTS
from port.config import CosyVoice3Config
from reference.synthesize import state_dict

pytestmark = pytest.mark.full
CONFIG = CosyVoice3Config()
TEXT_ROWS = 1000  # of the text embedding; the stack reads no others


def weights(part: str, config: CosyVoice3Config, prefix: str) -> dict[str, np.ndarray]:
    state = state_dict(part, config, seed=0)
    return {k.removeprefix(prefix): v.numpy() for k, v in state.items() if k.startswith(prefix)}


@pytest.mark.part("flow.dit.DiT")
@pytest.mark.parametrize("streaming", [False, True], ids=["full", "chunked"])
def test_dit_step(parity, streaming):
    n = 60
    inputs: dict[str, Draw | np.ndarray]
    inputs = dict(x=normal(2, 80, n), mask=valid(n, n, n), mu=normal(2, 80, n), t=np.array([0.3, 0.3], np.float32))
    inputs |= dict(spks=normal(2, 80, scale=0.3), cond=normal(2, 80, n))
    state = weights("flow", CONFIG, "decoder.estimator.")
    part = PARTS["flow.dit.DiT"]
    name = f"full.dit.{'chunked' if streaming else 'full'}"
    parity.check(Case(name, part, asdict(CONFIG.flow.dit), inputs, dict(streaming=streaming), weights=state))


@pytest.mark.part("vocoder.generator.CausalHiFTGenerator.inference")
@pytest.mark.parametrize("finalize", [True, False], ids=["end", "more"])
def test_vocoder(parity, finalize):
    frames = 20
    inputs = dict(speech_feat=normal(1, 80, frames), sine_waves=uniform(1, frames * 480, 9))
    part = PARTS["vocoder.generator.CausalHiFTGenerator.inference"]
    name = f"full.vocoder.{'end' if finalize else 'more'}"
    state = weights("hift", CONFIG, "")
    parity.check(Case(name, part, asdict(CONFIG.vocoder), inputs, dict(finalize=finalize), weights=state))


@pytest.mark.part("llm.qwen2.Qwen2Model")
def test_qwen2_stack(parity):
    qwen2 = replace(CONFIG.llm.qwen2, vocab_size=TEXT_ROWS)
    config = replace(CONFIG, llm=replace(CONFIG.llm, qwen2=qwen2))
    state = weights("llm", config, "llm.model.model.")
    inputs = dict(inputs_embeds=normal(1, 24, qwen2.hidden_size))
    parity.check(Case("full.qwen2", PARTS["llm.qwen2.Qwen2Model"], asdict(qwen2), inputs, weights=state))
