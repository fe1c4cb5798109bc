"""Inputs: images, cameras, scenes, dataset readers and generators. Everything foreign is converted here, once."""
