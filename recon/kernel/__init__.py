"""The CPU rasteriser's C++ sources, its shared library (built by setup.py) and the ctypes binding (`library`)."""
