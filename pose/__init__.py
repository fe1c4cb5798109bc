"""Pose: the camera of a query photo against a fitted reference, and whether to believe it."""
