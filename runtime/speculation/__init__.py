"""Speculative decoding: guesses of what a sequence goes on with, which one run of its model verifies together."""
