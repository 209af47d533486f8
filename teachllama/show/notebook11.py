"""The pictures of notebook 11, defined in `teachllama.lessons.n11_bits`."""

from teachllama.lessons.n11_bits.pictures import *  # noqa: F403
