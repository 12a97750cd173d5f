"""Operators of adaptc's own for whole modules: each is one fact, which passes carry until a target writes it."""
