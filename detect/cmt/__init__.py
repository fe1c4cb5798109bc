"""The correspondence matching transformer: does a photo agree with a reference shape, seen from an unknown side?

After Bhunia, Li, Bilen, "Looking 3D: Anomaly Detection with 2D-3D Alignment", CVPR 2024, built from its description.
"""
