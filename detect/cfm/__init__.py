"""Crossmodal feature mapping (CFM): a point's 3D features predicted from its 2D features, and back; defects disagree."""
