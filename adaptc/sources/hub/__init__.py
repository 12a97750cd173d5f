"""Models on the Hugging Face hub: their names, what is fetched of them, and why it cannot be."""
