"""Procedural products with and without defects, photographed from known cameras."""
