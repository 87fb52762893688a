"""An adapter that names an unknown part, cannot be made, or raises, ends in one clear line."""

import sys

import pytest

from mlx_parity.adapter import AdapterError
from parity_tests import adapters
from parity_tests.adapters.parts import Parts, PartsAdapter
from parity_tests.audit import main

pytestmark = pytest.mark.meta


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("flow.layers.FeedFoward", "flow.layers.FeedForward"),
        ("vocoder.generator.snake", "vocoder.generator.Snake"),
        ("llm.sampling.nucleus", "llm.sampling.nucleus_sampling"),
        ("Attention", "flow.layers.Attention"),
        ("", ""),
    ],
)
def test_an_unknown_part_is_refused_and_the_nearest_is_named(written, meant):
    """In `offers`, in the table itself and in `absent`; the audit would otherwise skip the part silently."""
    ways = [
        lambda: Parts().offers("flow.layers.GRN", written),
        lambda: PartsAdapter("toy", Parts({written: lambda job: {}})),
    ]
    ways += [lambda: PartsAdapter("toy", Parts(), {written: "no such thing"})] * (not meant.startswith(written))
    for way in ways:
        with pytest.raises(AdapterError, match=rf"{written!r}; the nearest is '.*{meant}'") as refused:
            way()
        assert "\n" not in str(refused.value)
    PartsAdapter("toy", Parts(), {"vocoder.": "no vocoder", "llm.sampling": "no sampler"})


def write_adapter(monkeypatch, tmp_path, name, text):
    """Put an adapter beside the others for one test."""
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(adapters, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(adapters, "__path__", [str(tmp_path), *adapters.__path__])
    monkeypatch.delitem(sys.modules, f"parity_tests.adapters.{name}", raising=False)


ADAPTER = """
from parity_tests.adapters.parts import Parts, PartsAdapter

PARTS = Parts()


@PARTS.offers({path!r})
def part(job):
    {body}


def make(dtype="float32"):
    {made}
"""


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"path": "flow.layers.FeedFoward"}, "the nearest is 'flow.layers.FeedForward'"),
        ({"made": "raise RuntimeError('no\\nGPU')"}, "RuntimeError: no GPU"),
        ({"made": "return PARTS.nothing"}, "AttributeError: 'Parts' object has no attribute 'nothing'"),
        ({"made": "return None }"}, "SyntaxError: "),
    ],
)
def test_an_adapter_that_cannot_be_made_is_one_line(monkeypatch, tmp_path, capsys, parts, said):
    usual = {"path": "vocoder.generator.Snake", "body": "return {}", "made": "return PartsAdapter('toy', PARTS)"}
    write_adapter(monkeypatch, tmp_path, "spoilt", ADAPTER.format(**usual | parts))
    assert main(["spoilt", "--report", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and "Traceback" not in printed.err
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_raises_gives_one_line_and_a_traceback_on_request(monkeypatch, tmp_path, capsys):
    body = "raise TypeError('conv() got\\n  an unexpected keyword')"
    usual = {"path": "vocoder.generator.Snake", "body": body, "made": "return PartsAdapter('toy', PARTS)"}
    write_adapter(monkeypatch, tmp_path, "raising", ADAPTER.format(**usual))
    words = ["raising", "--report", str(tmp_path / "out"), "--only", "vocoder.snake*"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    (line,) = (line for line in out.splitlines() if "vocoder.generator.Snake" in line and line.startswith("  ERROR"))
    assert "vocoder.generator.Snake: toy raised TypeError: conv() got an unexpected keyword" in line
    assert "unequal" not in out and "Traceback" not in out + err
    assert main([*words, "--traceback"]) == 1
    assert "raising.py" in capsys.readouterr().err
