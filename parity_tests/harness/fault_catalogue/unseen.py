"""Faults written from the facts about the original alone, before anyone looked at what the suite would do."""

from __future__ import annotations

from parity_tests.harness.fault_catalogue.base import Fault

FAULTS: tuple[Fault, ...] = ()
