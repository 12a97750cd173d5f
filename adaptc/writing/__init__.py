"""Chats that a model writes itself, to calibrate and to train on: what is asked, what is kept, and what writes it."""
