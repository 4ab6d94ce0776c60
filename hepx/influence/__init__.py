"""Training-data attribution."""
