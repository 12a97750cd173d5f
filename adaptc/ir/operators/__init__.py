"""Operators of adaptc's own: each is one fact that a graph carries until a target writes it out."""
