"""The checks of notebook 11, defined in `teachllama.lessons.n11_bits`."""

from teachllama.lessons.n11_bits.checks import *  # noqa: F403
