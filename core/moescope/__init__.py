"""moescope shows what the experts of a Mixture-of-Experts model specialise in.

The library works without server and frontend; importing it imports neither torch nor transformers.
"""

__version__ = "0.1.0"
