"""The fault runner on a toy package: what is caught, what does not count, and every error of a table."""

import os
import sys
import time
from pathlib import Path

import pytest

from mlx_parity.faults.patch import Fault, FaultError, patched
from mlx_parity.faults.table import read_tables
from mlx_parity.faults.verdict import Check, Finding, examine, summary
from mlx_parity.faults.worker import Workers

pytestmark = pytest.mark.meta
TOY = """
import functools
from toy_of_faults.sizes import WIDTH

@functools.cache
def table():
    return 2

def double(x):
    return table() * x

def wide(x):
    return double(x) + WIDTH

class Part:
    def __init__(self):
        self.size = 1
        super().__init__()

    @property
    def half(self):
        return self.size / 2
"""


class Suite:
    """Two checks, the smaller first; a third always fails, and a fourth is slow."""

    packages = ("toy_of_faults",)

    def batches(self, faults):
        return [[Check("double", "steps.double")]]

    def lasts(self, fault):
        return 0

    def alone(self, checks, say):
        found = {}
        for check in checks:
            say(check)
            start = time.perf_counter()
            if run(check.by) is None:
                found[check.by] = time.perf_counter() - start
        return found

    def look(self, fault, say):
        names: tuple[str, ...] = ("double", "wide") if fault.family != "anyway" else ("double", "wide", "fails")
        names = ("slow",) if fault.family == "slow" else names
        for name in names:
            say(check := Check(name, f"steps.{name}"))
            if message := run(name):
                return Finding(check, name, message), {}
        return None, {}


def run(name):
    from toy_of_faults import steps

    if name == "fails":
        return "it always does"
    if name == "slow":
        time.sleep(0.5)
        steps.double(1)
        return None
    try:
        found = getattr(steps, name)(3)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if found == {"double": 6, "wide": 10}[name] else f"{found}"


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy_of_faults").mkdir()
    (folder / "toy_of_faults" / "__init__.py").touch()
    (folder / "toy_of_faults" / "sizes.py").write_text("WIDTH = 4\n")
    (folder / "toy_of_faults" / "steps.py").write_text(TOY)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.startswith("toy_of_faults")]:
        del sys.modules[name]


def fault(old, new, where="steps:double", part="steps.double", family="test", **about):
    return Fault("name", family, part, where, old, new, **about)


@pytest.fixture
def verdict(tmp_path):
    def give(*faults, limit=20.0):
        (found,) = examine(faults, Suite(), Workers(2, limit, tmp_path))
        return found

    return give


def test_a_fault_is_caught_in_its_own_part(verdict):
    found = verdict(fault("* x", "+ x"))
    assert found.caught and found.right_part and found.as_wanted
    assert found.to_dict()["by"] == found.to_dict()["first_failing"] == "double"
    assert "caught" in str(found) and "right" in str(found)


def test_a_constant_changes_wherever_it_was_imported_to(verdict):
    found = verdict(fault(None, 5, "sizes:WIDTH", "steps.wide"))
    assert found.caught and found.right_part


def test_tables_made_before_do_not_hide_a_fault(verdict):
    from toy_of_faults import steps

    assert steps.double(1) == 2
    assert verdict(fault("return 2", "return 3", "steps:table")).caught
    assert steps.double(1) == 2


def test_a_part_that_contains_the_fault_is_the_wrong_one(verdict):
    found = verdict(fault("* x", "+ x", part="steps.wide"))
    assert found.caught and found.right_part is False
    assert "WRONG (steps.double, not steps.wide)" in str(found)


def test_an_edit_that_only_crashes_is_no_merit(verdict):
    found = verdict(fault("* x", "* no_such_name"))
    assert not found.caught and not found.as_wanted
    assert "the edit is broken: NameError" in found.problem


def test_a_check_that_fails_anyway_catches_nothing(verdict):
    found = verdict(fault("* x", "* x * 1", family="anyway"))
    assert not found.caught and "fails fails without the fault too" in found.problem


def test_a_suite_that_fails_without_any_fault_says_so(tmp_path):
    class Failing(Suite):
        def batches(self, faults):
            return [[Check("double", "steps.double")], [Check("fails", "steps.fails")]]

    with pytest.raises(FaultError, match="fails fails without any fault"):
        list(examine([fault("* x", "+ x")], Failing(), Workers(1, 20.0, tmp_path)))


def test_a_survivor_and_an_equivalent_fault_count_as_such(tmp_path):
    same, caught = fault("* x", "* x * 1"), fault("* x", "+ x")
    proved = fault("* x", "* x * 1", equivalent="times one")
    disproved = fault("* x", "+ x", equivalent="so it was said")
    found = list(examine([same, caught, proved, disproved], Suite(), Workers(2, 20.0, tmp_path)))
    said = {id(verdict.fault): (verdict.caught, verdict.as_wanted) for verdict in found}
    wanted = {
        id(same): (False, False),
        id(caught): (True, True),
        id(proved): (False, True),
        id(disproved): (True, False),
    }
    assert said == wanted
    assert summary(found) == "1 of 2 faults caught, 2 proved equivalent; right part first for 1 of 1"
    assert {str(verdict).split()[0] for verdict in found} == {"SURVIVED", "caught", "equal"}


def test_a_fault_that_never_ends_is_caught_by_the_time_limit(verdict):
    found = verdict(fault("table()", "all(iter(lambda: 1, 0)) and table()"), limit=3.0)
    assert found.caught and found.right_part and found.finding.endless
    assert found.to_dict()["by"] == "double (did not end)"
    assert found.seconds < 30


def test_a_check_that_takes_as_long_without_the_fault_catches_nothing(verdict):
    found = verdict(fault("table()", "all(iter(lambda: 1, 0)) and table()", family="slow"), limit=3.0)
    assert not found.caught and "slow takes" in found.problem


def test_a_process_that_ends_is_a_failure_of_the_check_that_ran(verdict):
    found = verdict(fault("table()", "__import__('os')._exit(3) or table()"))
    assert found.caught and found.right_part and "ended by itself" in found.finding.message


def test_temporary_files_stay_for_the_next_process_but_not_half_written(tmp_path):
    def work(item, say):
        say(item)
        kernel = Path(os.environ["TMPDIR"]) / "kernel"
        with kernel.open("a") as file:
            file.write(item)
        if item == "kill":
            os._exit(3)
        return kernel.read_text()

    workers = Workers(1, 20.0, tmp_path)
    found = [outcome.result for _, outcome in workers.run(work, ["a", "b", "kill", "c"])]
    assert found == ["a", "ab", None, "c"]


# ---- patches


@pytest.mark.parametrize(
    ("where", "old", "message"),
    [
        ("steps:double", "no such text", "'no such text' stands there 0 times"),
        ("steps:double", "x", "stands there 2 times"),
        ("steps:double", "table() * x", "the changed function is no Python"),
        ("steps:Part.__init__", "super().__init__()", "does not fit"),
        ("steps:nothing", "x", "nothing"),
        ("nowhere:double", "x", "nowhere"),
        ("sizes:HEIGHT", None, "no such name"),
    ],
)
def test_a_fault_that_does_not_fit_is_refused(where, old, message):
    new = "(" if "Python" in message else "pass"
    with (
        pytest.raises(FaultError, match=message) as refused,
        patched(fault(old, new, where, line="t.txt:7"), Suite.packages),
    ):
        pass
    assert str(refused.value).startswith(f"t.txt:7: {where}: ")


def test_a_property_is_patched_and_restored():
    from toy_of_faults.steps import Part

    with patched(fault("/ 2", "/ 4", "steps:Part.half"), Suite.packages):
        part = Part.__new__(Part)
        part.size = 1
        assert part.half == 0.25
    assert part.half == 0.5


# ---- tables


def read(tmp_path, text, part_of=lambda where: where.replace(":", ".") if "unknown" not in where else None):
    (tmp_path / "t.txt").write_text(text, "utf-8")
    return read_tables([tmp_path / "t.txt"], part_of)


def test_a_row_is_one_line(tmp_path):
    text = r"""
    # a comment
    [steps:double]
    plus  wrong operator  table() * x => table() + x
        seen in: project 7
        equivalent: never
    lost       line   \sx\n  y =>
    slashed    regex  a\\d => b\\d => c

    [sizes:WIDTH] steps.wide
    wider  constant  => "5\n => 6"
    """
    plus, lost, slashed, wider = read(tmp_path, text)
    assert plus == Fault(
        *("plus", "wrong operator", "steps.double", "steps:double", "table() * x", "table() + x", "project 7", "never"),
        line="t.txt:4",
    )
    assert (lost.old, lost.new) == (" x\n  y", "")
    assert (slashed.old, slashed.new) == ("a\\d", "b\\d => c")
    assert (wider.part, wider.where, wider.old, wider.new) == ("steps.wide", "sizes:WIDTH", None, "5\n => 6")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[steps:double]\nname family a => b", "t.txt:2: a row is"),
        ("[steps:double]\nname  family  a to b", "t.txt:2: a row is"),
        ("name  family  a => b", "t.txt:1: a row stands under a header"),
        ("[steps]", "t.txt:1: a header is"),
        ("[steps:double] part other", "t.txt:1: a header is"),
        ("\n[unknown:double]", "t.txt:2: no part follows from unknown:double"),
        ("[steps:double]\nname  family  a => \\q", "t.txt:2: .* no escape"),
        ("[sizes:WIDTH]\nname  family  => wide", "t.txt:2: 'wide' is no Python literal"),
        ("[steps:double]\na  f  x => y\n# and\na  f  x => z", "t.txt:4: a stands at t.txt:2 too"),
        ("seen in: somewhere", "t.txt:1: a row"),
    ],
)
def test_an_error_of_a_table_names_file_and_line(tmp_path, text, message):
    with pytest.raises(FaultError, match=message) as refused:
        read(tmp_path, text)
    assert "\n" not in str(refused.value)


def test_a_table_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(FaultError, match=r"none\.txt: No such file"):
        read_tables([tmp_path / "none.txt"], lambda where: None)
