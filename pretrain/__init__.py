"""Contrastive and supervised pre-training of ResNet encoders; knows nothing of detection."""

from __future__ import annotations
