"""Xwin-LM: powerful, stable, reproducible alignment of language models, from base model to report with one command."""

__version__ = "0.1.0"
