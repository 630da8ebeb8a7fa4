"""Attacks and protocols on a finished network."""
