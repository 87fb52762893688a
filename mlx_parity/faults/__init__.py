"""Planted faults: a catalogue as a table, each fault in a process of its own, and a score.

A suite that sees every fault and names the right part first is worth trusting with a port that nobody has read.
"""
