"""The front end's outputs on both sides. test_frontend_audio.py and test_onnx.py have its properties and witnesses."""

import numpy as np
import pytest

from convert.official import TOKENIZER_FOLDER
from mlx_parity.compare import compare
from mlx_parity.judge import Row
from parity_tests.speech_support import SYSTEM, WORDS
from port.frontend.special_tokens import ADDITIONAL_SPECIAL_TOKENS, BASE_SPECIAL_TOKENS, END_OF_TEXT
from port.frontend.tokenizer import CosyVoice3Tokenizer

MODES = {
    "zero_shot": lambda front, prompt, source: front.frontend_zero_shot(SYSTEM + WORDS, prompt),
    "cross_lingual": lambda front, prompt, source: front.frontend_cross_lingual(prompt),
    "instruct2": lambda front, prompt, source: front.frontend_instruct2("Slowly.<|endofprompt|>", prompt),
    "sft": lambda front, prompt, source: front.frontend_sft("saved"),
    "vc": lambda front, prompt, source: front.frontend_vc(source, prompt),
}


@pytest.mark.part("frontend.frontend")
@pytest.mark.float32
@pytest.mark.parametrize("mode", MODES)
def test_the_inputs_of_the_networks_agree(parity, voices, recordings, mode):
    """Tokens, mel and speaker of a prompt in every mode."""
    found = {}
    for side in ("port", "single", "double"):
        front = getattr(voices, side).frontend
        if mode == "sft":
            front.spk2info["saved"] = MODES["zero_shot"](front, *recordings)
        given = MODES[mode](front, *recordings)
        source, prompt = given if mode == "vc" else (None, given)
        given = prompt.given() | ({"source_speech_token": source} if mode == "vc" else {})
        found[side] = {name: np.array(value.tolist()) for name, value in given.items()}
        front.spk2info.clear()
    assert found["port"].keys() == found["single"].keys()
    rows = []
    for name, value in found["port"].items():
        single, double = found["single"][name], found["double"][name]
        reading = compare(value, single, double)
        method, case = f"frontend.frontend.CosyVoiceFrontEnd.frontend_{mode}", f"frontend.{mode}"
        rows.append(Row(f"{case}.{name}", "frontend", "chained", method, case, reading))
    parity.add(rows)


SENTENCES = (
    "希望你以后能够做的比我还好呦。",
    "You are a helpful assistant.<|endofprompt|>Good morning, [breath] 世界!",
    "<strong>3.14</strong>  and\ttabs, émigré, 😀 [laughter][ǜ]",
)


@pytest.mark.part("frontend.tokenizer")
@pytest.mark.parametrize("text", SENTENCES)
def test_text_tokenizer(parity, text):
    """Ids of the checkpoint's tokenizer as converted, against transformers on the official files."""
    transformers = pytest.importorskip("transformers", reason="transformers is the witness here")
    models = parity.models
    source = models.source / TOKENIZER_FOLDER
    witness = transformers.Qwen2TokenizerFast(str(source / "vocab.json"), str(source / "merges.txt"))
    base = {"additional_special_tokens": list(BASE_SPECIAL_TOKENS)}
    witness.add_special_tokens(base)
    added = {"additional_special_tokens": list(ADDITIONAL_SPECIAL_TOKENS)}
    witness.add_special_tokens({"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, **added})
    expected = np.array(witness(text).input_ids)
    found = np.array(CosyVoice3Tokenizer.from_folder(models.folder).encode(text))
    name = f"text_tokenizer.ids.{SENTENCES.index(text)}"
    reading = compare(found, expected, expected.copy())
    parity.add([Row(name, "text_tokenizer", "exact", "frontend.tokenizer.CosyVoice3Tokenizer", name, reading)])
