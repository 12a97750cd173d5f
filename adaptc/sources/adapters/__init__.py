"""LoRA adapters as PEFT saves them, and a model with some of them merged into its weights."""
