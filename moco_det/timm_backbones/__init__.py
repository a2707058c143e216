"""Networks of timm as detection backbones, for both engines; imports nothing."""
