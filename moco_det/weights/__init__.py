"""Anybody's ResNet checkpoint in, one proven backbone file out; reading never executes.

This file imports nothing; only `proof` and `loading` need torch.
"""
