"""The checks of notebook 01; they live in `teachllama.lessons.n01_generation`."""

from teachllama.lessons.n01_generation.checks import *  # noqa: F403
