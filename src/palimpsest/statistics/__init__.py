"""What the workflow learns from a corpus once per model."""
