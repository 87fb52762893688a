"""Planted faults: a catalogue as a table, each fault run in its own process, and a score.

A suite that catches every fault and names the right part first can be trusted with a port that nobody has read.
"""
