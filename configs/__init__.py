"""The yaml configs as package data: `importlib.resources.files("moco_det_configs")`."""
