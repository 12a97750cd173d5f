"""The machine a program runs on: its processor and memory, and timing that other programs disturb little."""
