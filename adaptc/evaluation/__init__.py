"""How good a bundle is: perplexity, parity with its source, answers, and sweeps over budgets."""
