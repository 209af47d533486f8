"""The checks of notebook 05, defined in `teachllama.lessons.n05_performance`."""

from teachllama.lessons.n05_performance.checks import *  # noqa: F403
