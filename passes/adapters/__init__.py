"""LoRA adapters that requests choose among: a second form of a decoder over the same weights."""
