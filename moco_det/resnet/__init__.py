"""The ResNet that the standalone engine and the proof of a conversion run; imports nothing."""
