"""What every package stands on, and nothing of detection."""
