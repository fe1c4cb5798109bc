"""Crossmodal feature mapping: does what a point looks like agree with the shape it has, as on good parts it does?

After Costanzino, Zama Ramirez, Lisanti, Di Stefano, "Multimodal Industrial Anomaly Detection by Crossmodal Feature
Mapping", CVPR 2024, built from its description.
"""
