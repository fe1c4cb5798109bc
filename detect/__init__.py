"""Detection: difference maps of photo and render, calibrated scores, verdicts and metrics."""
