"""The tokenizer of the embedded checkpoint: the same files on every machine, and it behaves like the official one."""

import hashlib

import pytest

from port.frontend.tokenizer import CosyVoice3Tokenizer
from reference.tiny_tokenizer import build_tiny_tokenizer

pytestmark = pytest.mark.part("reference")


def test_the_tiny_tokenizer_is_the_same_everywhere(tmp_path):
    build_tiny_tokenizer(tmp_path, 320)
    digest = hashlib.sha256()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        digest.update((tmp_path / name).read_bytes())
    assert digest.hexdigest() == "7f0ca18ddad39fdd4f5a3f30575cb9b51f44d209f125e7f222e0965c597d019d"


def test_the_tiny_tokenizer_keeps_chinese_characters_apart(tmp_path):
    build_tiny_tokenizer(tmp_path, 600)
    tokenizer = CosyVoice3Tokenizer.from_folder(tmp_path)
    texts = [tokenizer.decode([i]) for i in range(600)]
    assert all(len(text) == 1 for text in texts if any("\u4e00" <= c <= "\u9fff" for c in text))
    assert "我" in texts and " the" in texts


@pytest.mark.parametrize("size", [255, 5000])
def test_the_tiny_tokenizer_refuses_impossible_sizes(tmp_path, size):
    with pytest.raises(ValueError, match=f"vocab_size {size} is"):
        build_tiny_tokenizer(tmp_path, size)
    assert not list(tmp_path.iterdir())
