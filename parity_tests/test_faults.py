"""The catalogue of faults: a selection planted in every run, its score, and the command that plants them.

The whole catalogue takes some minutes: `make record`. test_fault_runner.py tests the runner on a toy package.
"""

import difflib
import json
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlx_parity.faults.patch import patched
from mlx_parity.faults.verdict import Verdict
from mlx_parity.fingerprint import fingerprint
from parity_tests.faults import PACKAGES, __main__, catalogue, checks, parts, score

ROOT = Path(__file__).parents[1]
FAULTS = catalogue()
BY_NAME = {fault.name: fault for fault in FAULTS}
COMMAND = [sys.executable, "-m", "parity_tests.faults"]
# One of each family, cheap to catch: for the ordinary run of the suite.
SELECTION = """
    resampler_rolloff_0.95 mel_window_symmetric speaker_norm_by_the_batch qwen2_cache_lost_when_it_grows
    top_p_leaves_out_the_token_that_crosses chunk_edge_one_frame_early rope_half_split rope_on_all_heads
    adaln_eps_1e-5 adaln_final_shift_before_scale unconditional_half_keeps_mu guidance_rate_off_by_a_thousandth
    lookahead_relu convolution_one_frame_early stage_slope_0.01 synthesis_normalised_by_the_window
    magnitude_not_clipped noise_gaussian phase_summed_in_float32 noise_one_word_late bias_of_queries_dropped
    one_row_of_the_speech_table
"""
QUICK = SELECTION.split()


def command(*arguments, jobs=2):
    """Run the command in a process of its own: this one has evaluated arrays, so workers cannot be its forks."""
    words = [*COMMAND, *map(str, arguments), *(() if "--patch" in arguments else ("--jobs", str(jobs)))]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)


def planted(tmp_path, *arguments):
    """Run the command; returns its rows by name, and the finished process."""
    done = command("--json", tmp_path / "score.json", *arguments)
    assert (tmp_path / "score.json").is_file(), done.stderr
    rows = json.loads((tmp_path / "score.json").read_text("utf-8"))["rows"]
    return {row["name"]: row for row in rows}, done


@pytest.fixture(scope="module")
def quick(parity, tmp_path_factory):
    """Rows of the selection; skipped if the port itself is wrong, as a planted fault then proves nothing."""
    if parity.config.getoption("--adapter") != "own":
        pytest.skip("faults are planted in this repository's port")
    words = [word for name in QUICK for word in ("--only", name)]
    path = tmp_path_factory.mktemp("faults") / "score.json"
    done = command("--json", path, *words)
    if "without any fault" in done.stderr:
        pytest.skip(f"the port fails: {done.stderr.strip()}")
    assert path.is_file(), done.stderr
    return {row["name"]: row for row in json.loads(path.read_text("utf-8"))["rows"]}


@pytest.mark.part("faults")
@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_caught_in_its_own_module(parity, quick, name):
    parity.keep("faults", [quick[name]])
    assert quick[name]["caught"]
    assert quick[name]["right_module"], f"{quick[name]['first_failing']} was named first"


@pytest.mark.meta
def test_the_catalogue_is_large_and_its_names_are_unique():
    assert len(FAULTS) >= 460
    assert len(BY_NAME) == len(FAULTS)
    assert set(QUICK) <= BY_NAME.keys()
    assert len({fault.family for fault in FAULTS}) >= 20
    assert not [fault.name for fault in FAULTS if parts.group_of(fault.part) is None], "nothing would run"


@pytest.mark.meta
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_the_code_and_leaves_no_trace(fault):
    """Source text that no longer exists is an error, and undoing a fault restores the same code object."""
    from port.noise import rand_noise

    before = rand_noise.__code__
    with patched(fault, PACKAGES):
        pass
    assert rand_noise.__code__ is before


@pytest.mark.meta
def test_every_part_of_a_fault_can_be_named():
    """By an isolated case, or by a test that is marked with it: a renamed test cannot drop out silently."""
    script = "from parity_tests.faults.tests import marked_tests; print(*{test.part for test in marked_tests()})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    marked = set(done.stdout.split())
    named = marked | {case.part.path for case in checks.all_cases()}
    assert not {fault.part for fault in FAULTS} - named
    assert not parts.WITHOUT_CASES - marked, "no test names it"
    assert all(parts.is_part(part) for part in named)


SCRATCH = r"""
# what is new is one line below its function
[flow.masks:make_pad_mask]
inverted  mask  >= lengths => < lengths
crashes   test  np.asarray(lengths) => no_such_name(lengths)
endless   test  np.asarray(lengths) => all(iter(lambda: 1, 0)) and np.asarray(lengths)

[flow.masks:make_pad_mask] flow.layers.Attention
elsewhere  mask  >= lengths => > lengths

[noise:rand_noise]
endless_noise  test  _FIXED.lock => (all(iter(lambda: 1, 0)) and _FIXED.lock)
"""


@pytest.mark.meta
def test_a_new_fault_is_one_line_of_a_table(tmp_path):
    """A crash counts as broken, an endless case or test as caught, and a finding in another part as the wrong part."""
    (tmp_path / "scratch.txt").write_text(SCRATCH, "utf-8")
    rows, done = planted(tmp_path, "--table", tmp_path / "scratch.txt", "--limit", 60)
    assert done.returncode == 1
    assert all(line.startswith("waits ") for line in done.stderr.splitlines()), done.stderr
    assert rows["inverted"]["caught"] and rows["inverted"]["right_module"]
    assert not rows["crashes"]["caught"] and "the edit is broken: ERROR: NameError" in done.stdout
    assert rows["endless"]["by"] == "flow.masks.pad (did not end)" and rows["endless"]["right_module"]
    assert rows["elsewhere"]["caught"] and rows["elsewhere"]["right_module"] is False
    noise = rows["endless_noise"]
    assert noise["right_module"] and "::" in noise["by"] and noise["by"].endswith("(did not end)")
    assert "4 of 5 faults caught" in done.stdout


@pytest.mark.meta
def test_what_is_no_fault_is_one_line(tmp_path):
    (tmp_path / "wrong.txt").write_text("[flow.masks:make_pad_mask]\nname  family  nothing\n", "utf-8")
    for arguments, said in (
        (["--only", "no_such_fault"], "no fault is named no_such_fault"),
        (["--table", str(tmp_path / "wrong.txt")], "wrong.txt:2: a row is"),
        (["--jobs", "0"], "must be positive"),
        (["--patch", str(tmp_path / "none.patch")], "no such file"),
    ):
        done = command(*arguments, jobs=0 if "0" in arguments else 1)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("faults: ") and said in line


@pytest.mark.meta
def test_names_select_faults():
    assert [f.name for f in __main__.selected(FAULTS, ["rope_half_split"])] == ["rope_half_split"]
    assert len(__main__.selected(FAULTS, ["guidance", "mask"])) > 5
    assert {f.name for f in __main__.selected(FAULTS, ["rope_half"])} == {"rope_half_split"}
    assert len(__main__.selected(FAULTS, [])) == len(FAULTS)


# ---- patches of the checkout


def patch_of(path, old, new):
    """A patch that replaces the only occurrence of `old` in a file."""
    source = (ROOT / path).read_text("utf-8")
    assert source.count(old) == 1
    before, after = (text.splitlines(keepends=True) for text in (source, source.replace(old, new)))
    return "".join(difflib.unified_diff(before, after, f"a/{path}", f"b/{path}"))


@pytest.mark.meta
def test_a_patch_is_judged_in_a_copy(tmp_path):
    before = (ROOT / "port/flow/masks.py").read_text("utf-8")
    text = patch_of("port/flow/masks.py", ">= lengths", "< lengths")
    (tmp_path / "inverted.patch").write_text(text, "utf-8")
    done = command("--patch", tmp_path / "inverted.patch")
    assert (done.stdout, done.returncode) == ("inverted caught first=flow.masks.make_pad_mask\n", 0), done.stderr
    assert (ROOT / "port/flow/masks.py").read_text("utf-8") == before


@pytest.mark.meta
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("port/flow/masks.py", "patch failed"),
        ("../outside.py", "touches ../outside.py, which is outside"),
        ("port/none.py", "No such file"),
    ],
)
def test_a_patch_that_does_not_apply_is_one_line(tmp_path, path, said):
    text = patch_of("port/flow/masks.py", ">= lengths", "< lengths")
    text = text.replace("np.asarray", "np.array").replace("port/flow/masks.py", path)
    (tmp_path / "wrong.patch").write_text(text, "utf-8")
    done = command("--patch", tmp_path / "wrong.patch")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and not done.stdout
    assert line.startswith("faults: ") and "wrong.patch: " in line and said in line


# ---- the recorded score


@pytest.mark.part("faults")
def test_the_score_of_the_whole_catalogue_goes_into_the_report(parity):
    """As it was last recorded, by `make record`; the report says when, and whether the code has changed since."""
    found = score.catalogue_section()
    assert found is not None, "no score was recorded: make record"
    parity.keep("fault_catalogue", [found])


@pytest.mark.meta
def test_nothing_survived_in_the_recorded_score():
    """The record may be older than the catalogue: this warns by how much, and `make record` renews it."""
    found = score.catalogue_section()
    assert found is not None, "no score was recorded: make record"
    rows = {row["name"]: row for row in found["rows"]}
    if differing := rows.keys() ^ BY_NAME.keys():
        warnings.warn(f"recorded score and catalogue differ in {len(differing)} faults: make record", stacklevel=1)
    assert rows.keys() & BY_NAME.keys(), "the recorded score is of another catalogue: make record"
    counted = [row for row in rows.values() if not row["equivalent"]]
    survivors = [row["name"] for row in counted if not row["caught"]]
    assert not survivors, f"survived: {', '.join(survivors)}"
    assert found["score"] == {"caught": len(counted), "total": len(counted)}
    wrong = [row["name"] for row in counted if not row["right_module"]]
    assert len(wrong) <= 0.05 * len(counted), f"another module was named first for {', '.join(wrong)}"


@pytest.mark.meta
def test_a_score_recorded_on_other_code_says_so(tmp_path, monkeypatch):
    path, started = tmp_path / "score.json", datetime.now(UTC)
    path.write_text(score.record([Verdict(FAULTS[0], None), Verdict(FAULTS[1], None)], started), "utf-8")
    found = score.catalogue_section(path)
    assert found["fresh"] is True and found["recorded"]["fingerprint"] == fingerprint(ROOT, score.CODE)
    assert [row["name"] for row in found["rows"]] == [fault.name for fault in FAULTS[:2]]
    assert len(path.read_text("utf-8").splitlines()) < 10, "one row a line"
    monkeypatch.setattr(score, "fingerprint", lambda *places: "other")
    assert score.catalogue_section(path)["fresh"] is False


@pytest.mark.meta
def test_another_table_is_other_code(tmp_path):
    table = tmp_path / "faults" / "flow.txt"
    table.parent.mkdir()
    found = []
    for text in ("a  b  c => d", "# said\n\na  b  c => d\n", "a  b  c => e"):
        table.write_text(text, "utf-8")
        found.append(fingerprint(tmp_path, ["faults"]))
    assert found[0] == found[1] != found[2]
