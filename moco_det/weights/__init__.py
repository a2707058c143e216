"""Anybody's checkpoint in, one proven backbone file out; reading never executes.

This file imports nothing; only `proof`, `timm_proof` and `loading` need torch.
"""
