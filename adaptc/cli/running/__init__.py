"""Commands that answer prompts with a bundle."""
