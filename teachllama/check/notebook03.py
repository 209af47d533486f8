"""The checks of notebook 03, defined in `teachllama.lessons.n03_sampling`."""

from teachllama.lessons.n03_sampling.checks import *  # noqa: F403
