"""A decoder's step and its prompts as a GPU runs them: the files in `steps/`, and what makes them safe to run."""
