"""What speculative decoding gains, by kind of text: prompts that anybody has, answered in turns with and without it."""
