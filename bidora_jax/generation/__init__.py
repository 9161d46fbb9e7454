"""Decoding, answers, ensembles, chat."""
