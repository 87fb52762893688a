"""Malicious yaml is refused; yaml with anchors, which people write, is read."""

import pytest

from convert.checkpoint import read_yaml
from tests.support.convert_support import refused

pytestmark = pytest.mark.robust


@pytest.mark.parametrize(
    "text",
    [
        "x: " + "[" * 2000,
        "x: " + "{a: " * 2000,
        "\n".join(" " * i + "- a:" for i in range(400)),
        "? " * 3000 + "a",
        "x: " + ":".join(["1"] * 150_000),
        "x: [" + ",".join([":".join(["59"] * 200)] * 300) + ",",
        "x: " + "9" * 100_000,
        "x: !!int ''",
        "x: !!float ''",
        "x: !!bool x",
        "x: !!timestamp x",
        "x: !!timestamp ''",
        "x: !!int 0x",
        "x: !!int 0b",
        "x: !!int '1:'",
        "x: !!float '1:x'",
        "x: !!null [1]",
        "x: !!binary '\u00e9'",
        "x: !!set [1]",
        "x: !!omap {a: 1}",
        "x: !!pairs 3",
        "? [1, 2]\n: x",
        "x: !<tag:yaml.org,2002:python/object/apply:os.system> [id]",
        "x: !%1b%5b2J%0aok y",
        "a: &a [*a]",
        "a: &a {b: *a}",
        "x: *nothing",
        "a: &a [x, x]\n"
        + "\n".join(f"a{i}: &a{i} [*a{i - 1 if i else ''}, *a{i - 1 if i else ''}]" for i in range(40)),
        "a: &a {k: 1}\n" + "".join(f"b{i}: &b{i} {{k: *{'a' if not i else f'b{i - 1}'}}}\n" for i in range(60)),
        "x: " + "a" * 300_000,
        "[" * 100,
        *("x: [1", "- 1\n- 2\n", "\x00", "x: 2000-13-45\n", "a: !new:x.y ["),
    ],
)
def test_malicious_yaml_is_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    refused(read_yaml, tmp_path / "x.yaml")


def test_yaml_with_anchors_is_read(tmp_path):
    text = (
        "d: &d [1, 3, 5]\nrate: &r 24000\nx: {a: [*d, *d, *d], b: *r}\nbase: &base {c: 1, d: 2}\ny: {<<: *base, d: 3}\n"
    )
    (tmp_path / "x.yaml").write_text(text)
    found = read_yaml(tmp_path / "x.yaml")
    assert found["x"] == {"a": [[1, 3, 5]] * 3, "b": 24000}
    assert found["y"] == {"c": 1, "d": 3}
