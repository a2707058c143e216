"""Studies: hypotheses that were declared, and the encoders, probes and detectors they need."""
