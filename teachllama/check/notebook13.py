"""The checks of notebook 13, defined in `teachllama.lessons.n13_guess`."""

from teachllama.lessons.n13_guess.checks import *  # noqa: F403
