"""Supervised tasks: an encoder with a head, trained by the one trainer."""
