"""Attacks on what adaptc keeps: bytes that flip, writers that are killed, several writers at once.

Each runs by hand with a large count, `python -m tests.attacks.flips --count 1000`, prints a table of outcomes and fails
if one is bad; `test_attacks.py` runs few of each. docs/results/robustness.md has what the large ones gave.
"""
