"""Tests of timm's networks need timm."""

import pytest

pytest.importorskip("timm")
