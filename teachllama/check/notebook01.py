"""The checks of notebook 01, defined in `teachllama.lessons.n01_generation`."""

from teachllama.lessons.n01_generation.checks import *  # noqa: F403
