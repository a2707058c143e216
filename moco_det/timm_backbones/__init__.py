"""Networks of timm as detection backbones, for both engines; imports nothing."""

# The features of a plain ViT: after each quarter of its blocks, the last one's through its norm.
PLAIN_STAGES = ("quarter1", "quarter2", "quarter3", "last")
