"""Mixers that look back at all earlier tokens."""

from .multihead import MHA as MHA
